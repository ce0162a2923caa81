"""Colours of speed-ups: blue gains, orange loses, grey is even; a ratio and its inverse are equally strong.

Blue and orange differ to every kind of colour-blind eye; the style sheet gives each class its colour and its ink, in
light and in dark.
"""

from bisect import bisect_right
from typing import Final

from gptfast_cli.render.charts.canvas import canvas, text
from gptfast_cli.render.markup import Element, tag

EDGES: Final = (1.02, 1.25, 1.6, 2.2)


def shade(speedup: float) -> str:
    """The class of a speed-up: from `loss4` over `even` to `gain4`."""
    side, factor = ("gain", speedup) if speedup >= 1 else ("loss", 1 / max(speedup, 1e-9))
    strength = bisect_right(EDGES, factor)
    return f"{side}{strength}" if strength else "even"


def legend() -> Element:
    """The scale of colours, with the ratios at which they change."""
    width, height = 34, 14
    losses = [f"loss{n}" for n in range(len(EDGES), 0, -1)]
    shades = [*losses, "even", *(f"gain{n}" for n in range(1, len(EDGES) + 1))]
    bounds = [*(1 / edge for edge in reversed(EDGES)), *EDGES]
    return canvas(
        "Colours of speed-ups: orange is slower than plain decoding, grey even, blue faster",
        width * len(shades) + 2,
        34,
        *(tag("rect", x=1 + n * width, y=1, width=width, height=height, class_=s) for n, s in enumerate(shades)),
        *(text(f"{bound:.2f}", 1 + n * width, 29, "tick", "middle") for n, bound in enumerate(bounds, start=1)),
    )
