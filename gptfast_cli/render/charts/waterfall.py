"""What takes a value from its ideal down to what is reached: one bar below the other, as wide as the page is."""

from dataclasses import dataclass
from typing import Final, Literal

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.charts.canvas import marked, text
from gptfast_cli.render.markup import Element, tag

_ROW: Final = 44
_BAR: Final = 16
_FOOT: Final = 26


@dataclass(frozen=True, slots=True)
class Bar:
    """A whole from zero, or a change from one value to another; `note` says how it comes about."""

    name: str
    note: str
    kind: Literal["ideal", "change", "reached", "measured"]
    start: float
    end: float
    interval: Interval | None = None


def waterfall(label: str, bars: tuple[Bar, ...], mark: float, mark_label: str) -> Element:
    """The bars, and a dashed line at a value that they are to be held against."""
    highs = [bar.interval.high for bar in bars if bar.interval is not None]
    widest = max(mark, *highs, *(max(bar.start, bar.end) for bar in bars)) * 1.01
    bottom = _ROW * len(bars)
    at = _percent(mark / widest)
    marks = [n * _ROW + 21 for n in range(len(bars))]  # beside the bars, not through the writing above them
    return tag(
        "svg",
        tag("title", label),
        *(_drawn(bar, n * _ROW, widest) for n, bar in enumerate(bars)),
        *(tag("line", x1=at, x2=at, y1=y, y2=y + _BAR + 3, class_="break-even-dash") for y in marks),
        text(mark_label, 0, bottom + 17, "tick")
        if mark < widest / 2
        else tag("text", mark_label, x="100%", y=bottom + 17, class_="tick", text_anchor="end"),
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
        width="100%",
        height=bottom + _FOOT,
        class_="wide",
    )


def _drawn(bar: Bar, top: int, widest: float) -> Element:
    """Positions across are parts of the width, so that the chart is as wide as its place without growing its type."""
    low, high = sorted((bar.start, bar.end))
    y = top + 22
    number = _signed(bar.end - bar.start) if bar.kind == "change" else f"{bar.end:.2f}×"
    kind = bar.kind if bar.kind != "change" else "loss" if bar.end <= bar.start else "gain"
    return marked(
        f"{bar.name}: {number} ({bar.note})",
        _caption(bar, top + 15),
        tag("text", number, x="100%", y=top + 15, class_="number", text_anchor="end"),
        tag("line", x1=0, x2="100%", y1=y + _BAR, y2=y + _BAR, class_="rule"),
        tag(
            "rect",
            x=_percent(low / widest),
            y=y,
            width=_percent(max(high - low, widest / 500) / widest),
            height=_BAR,
            class_=f"bar {kind}",
        ),
        *(_whisker(bar.interval, y + _BAR / 2, widest) if bar.interval is not None else ()),
    )


def _caption(bar: Bar, y: float) -> Element:
    return tag(
        "text", tag("tspan", bar.name, class_="name"), tag("tspan", f"\N{EN SPACE}{bar.note}", class_="note"), x=0, y=y
    )


def _whisker(interval: Interval, y: float, widest: float) -> list[Element]:
    low, high = _percent(interval.low / widest), _percent(interval.high / widest)
    return [
        tag("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"),
        *(tag("line", x1=end, x2=end, y1=y - 4, y2=y + 4, class_="whisker") for end in (low, high)),
    ]


def _signed(change: float) -> str:
    return "0.00" if abs(change) < 0.005 else f"{change:+.2f}".replace("-", "\N{MINUS SIGN}")


def _percent(part: float) -> str:
    return f"{100 * part:.3f}%"
