"""The sheet that a chart is drawn on, and the writing on it: drawn to scale, so that type is as large everywhere."""

from gptfast_cli.render.markup import Child, Element, tag

WIDTH = 344  # pixels: what a window of 400 has room for, and a third of a wide page


def canvas(label: str, width: float, height: float, *marks: Child | None) -> Element:
    """A picture with a text that stands for it where it is not seen."""
    return tag(
        "svg",
        tag("title", label),
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def text(words: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Element:
    """A line of writing; `anchor` is start, middle or end."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def marked(title: str, *marks: Child | None, class_: str | None = None) -> Element:
    """Marks that tell more under the pointer."""
    return tag("g", tag("title", title), *marks, class_=class_)


def shortened(words: str, limit: int) -> str:
    """A name that has to fit; its middle is left out, for names of models differ at both ends."""
    if len(words) <= limit:
        return words
    head = limit // 2
    return f"{words[:head]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - (limit - head - 1) :]}"


def path(points: list[tuple[float, float]]) -> str:
    """The straight strokes through points, as the `d` of a path."""
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points)
