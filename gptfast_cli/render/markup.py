"""HTML and SVG as a tree of elements: every text in it is escaped when it is written, so none can act as markup."""

import html
from dataclasses import dataclass
from typing import Final, TypeAlias, Union

from gptfast_cli.render.terminal import printable

Child: TypeAlias = Union["Element", str]
Value: TypeAlias = str | float | None

_VOID: Final = frozenset({"meta", "input"})
_LINES: Final = frozenset(
    {
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "figure", "div", "table",
        "thead", "tbody", "tr", "svg", "details", "dl", "dt", "dd", "h1", "h2", "h3", "p", "fieldset",
    }
)  # fmt: skip
_NO_XML: Final = {0xFFFE: "\N{REPLACEMENT CHARACTER}", 0xFFFF: "\N{REPLACEMENT CHARACTER}"}


@dataclass(frozen=True, slots=True)
class Element:
    """An element and what is in it."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Child, ...]

    def __str__(self) -> str:
        """As HTML; an `svg` is well-formed XML too."""
        attributes = "".join(f' {key}="{_escaped(value)}"' for key, value in self.attributes)
        end = "\n" if self.name in _LINES else ""
        if self.name in _VOID:
            return f"<{self.name}{attributes}>{end}"
        inner = "".join(self._written(child) for child in self.children)
        return f"<{self.name}{attributes}>{inner}</{self.name}>{end}"

    def _written(self, child: Child) -> str:
        if isinstance(child, Element):
            return str(child)
        if self.name == "style":  # written as it is: nothing from outside belongs there
            assert "<" not in child
            return child
        return _escaped(child)


def tag(name: str, /, *children: Child | None, **attributes: Value) -> Element:
    """An element; `class_` is the attribute class, `stroke_width` is stroke-width, and None is left out."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Element(
        name,
        tuple((key, _value(value)) for key, value in named if value is not None),
        tuple(child for child in children if child is not None),
    )


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")  # a hundredth of a pixel


def _escaped(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode("utf-8")  # a file's name may hold half a surrogate
    return html.escape(printable(whole).translate(_NO_XML))
