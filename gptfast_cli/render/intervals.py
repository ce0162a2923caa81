"""How a number and its interval are written: the number as it is, the interval smaller beside it."""

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.markup import Element, tag


def spoken(interval: Interval, unit: str = "") -> str:
    """In plain text: 1.71 [1.66, 1.77]."""
    return f"{interval.value:.2f}{unit} [{interval.low:.2f}, {interval.high:.2f}]"


def shown(interval: Interval | None, unit: str = "") -> Element:
    """In a table or a line; a dash where there is none."""
    if interval is None:
        return tag("span", "\N{EN DASH}", class_="soft")
    return tag(
        "span",
        tag("b", f"{interval.value:.2f}{unit}"),
        tag("span", f" [{interval.low:.2f}, {interval.high:.2f}]", class_="soft"),
        class_="whole",
    )
