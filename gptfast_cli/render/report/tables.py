"""Tables of the report: heads name rows and columns, numbers stand to the right, and a wide one scrolls in its box."""

from collections.abc import Container, Iterable, Sequence

from gptfast_cli.render.markup import Child, Element, tag


def table(
    caption: str, headings: Sequence[str], rows: Iterable[Sequence[Child]], texts: Container[int] = (0,)
) -> Element:
    """Rows of equally many cells; the first cell names its row, the columns `texts` are texts, the rest numbers."""
    classes = ["text" if n in texts else "number" for n in range(len(headings))]
    head = [tag("th", h, scope="col", class_=c) for h, c in zip(headings, classes, strict=True)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=classes[0]),
            *(tag("td", cell, class_=c) for cell, c in zip(row[1:], classes[1:], strict=True)),
        )
        for row in rows
    ]
    whole = tag("table", tag("caption", caption, class_="unseen"), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def numbered(number: int | None, name: Child) -> Child:
    """The name of a row, after the number that it has in a picture beside the table, where it has one."""
    return (
        name if number is None else tag("span", tag("span", str(number), class_="soft"), " ", name, class_="numbered")
    )


def section(anchor: str, heading: str, *parts: Child | None) -> Element:
    """A part of the report under its heading."""
    return tag(
        "section", tag("h2", heading, id=f"{anchor}-heading"), *parts, id=anchor, aria_labelledby=f"{anchor}-heading"
    )


def paragraph(*parts: Child, class_: str = "lead") -> Element:
    """A few sentences."""
    return tag("p", *parts, class_=class_)


def figure(caption: str, picture: Element, *notes: Child, is_broad: bool = False) -> Element:
    """A picture under its name, with what has to be said about it below; a broad one has its row to itself."""
    return tag(
        "figure",
        tag("figcaption", caption),
        tag("div", picture, class_="scroll"),
        *(tag("p", note, class_="note") for note in notes),
        class_="broad" if is_broad else None,
    )
