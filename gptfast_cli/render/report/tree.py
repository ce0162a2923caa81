"""The report on draft models as a tree: sections of paragraphs, tables and figures, which each writer lays out.

Tables hold values, not text in a format: a writer knows how its medium marks a name, an interval or the best of a
column. What only some media show says so itself: columns and sections from a level of detail on, and `Pictured`,
which has tables for the media without pictures.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Literal, TypeAlias, Union

from gptfast_cli.core.drafts.report import DraftResult, GridCell, Interval
from gptfast_cli.render.charts.svg import Element
from gptfast_cli.render.numbers import digits

MISSING = "-"
"""The text of a cell without a number."""


class Detail(IntEnum):
    """How much a medium shows: a terminal the least, the page all."""

    TERMINAL = 0
    MARKDOWN = 1
    PAGE = 2


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a draft, a model or a prompt: may be long, and may hold any character."""

    kind: ClassVar = "name"
    text: str


@dataclass(frozen=True, slots=True)
class Quoted:
    """A sentence that is not ours, such as an error's: may hold any character."""

    kind: ClassVar = "quoted"
    text: str


@dataclass(frozen=True, slots=True)
class Soft:
    """A word in place of a value; the page adds `note`."""

    kind: ClassVar = "soft"
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ranged:
    """A number with its interval; `unit` is shown on the page. Media below `since` show the number alone."""

    kind: ClassVar = "ranged"
    interval: Interval
    unit: str = ""
    is_alpha: bool = False  # three decimals, in place of three digits
    since: Detail = Detail.TERMINAL

    @property
    def texts(self) -> tuple[str, str, str]:
        """The value, the low and the high end."""
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        if self.is_alpha:
            return f"{value:.3f}", f"{low:.3f}", f"{high:.3f}"
        return digits(value), digits(low), digits(high)


@dataclass(frozen=True, slots=True)
class Speedup:
    """A speed-up in a grid; `is_best` of its column."""

    kind: ClassVar = "speedup"
    value: float
    is_best: bool = False
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """A share 0..1 that a terminal shows with a bar."""

    kind: ClassVar = "share"
    share: float


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds of a round as a share of it; the page shows the time as well."""

    kind: ClassVar = "part"
    seconds: float
    total: float


@dataclass(frozen=True, slots=True)
class Holds:
    """Whether a check holds: yes or NO."""

    kind: ClassVar = "holds"
    holds: bool


Words: TypeAlias = str | Name | Quoted | Soft | Ranged | Speedup
"""A part of a sentence; str is our own text."""

Cell: TypeAlias = str | Name | Soft | Ranged | Speedup | Share | Part | Holds
"""A value in a table; str is a number in our own format, or a heading's word."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or a few."""

    kind: ClassVar = "paragraph"
    words: tuple[Words, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """The heading of a column: `title` where there is room, else `heading`; texts are aligned left, numbers right."""

    heading: str
    title: str
    is_text: bool = False
    since: Detail = Detail.TERMINAL


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, which may be short; the first `n_names` columns say what a row is about.

    is_numbered: a figure beside the table labels its points with the numbers of the rows
    """

    kind: ClassVar = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_names: int = 1
    is_numbered: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms and what is known of them."""

    kind: ClassVar = "facts"
    items: tuple[tuple[tuple[Words, ...], tuple[Words, ...]], ...]
    class_: str = "facts"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart under its caption, with notes below; a broad one has its row to itself."""

    kind: ClassVar = "figure"
    caption: str
    picture: Element
    notes: tuple[str, ...] = ()
    is_broad: bool = False


@dataclass(frozen=True, slots=True)
class Legend:
    """A picture without a caption."""

    kind: ClassVar = "legend"
    picture: Element


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks that stand together; those of a temperature are hidden on the page while another one is chosen.

    layout: figures beside one another, a figure beside its table (pair), or blocks below one another
    """

    kind: ClassVar = "group"
    blocks: tuple["Block", ...]
    layout: Literal["figures", "pair", "stack", ""] = ""
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are folded up below a line."""

    kind: ClassVar = "fold"
    words: tuple[Words, ...]
    blocks: tuple["Block", ...]


@dataclass(frozen=True, slots=True)
class Pictured:
    """Blocks for the page, and those for media without pictures."""

    kind: ClassVar = "pictured"
    pictures: tuple["Block", ...] = ()
    otherwise: tuple["Block", ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One draft at one temperature; `best`: its cell of the highest predicted speed-up; folded up unless `is_open`."""

    kind: ClassVar = "card"
    draft: DraftResult
    best: GridCell | None
    is_open: bool
    blocks: tuple["Block", ...]


Block: TypeAlias = Union[Paragraph, Table, Facts, Figure, Legend, Group, Fold, Pictured, Card]  # noqa: UP007


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a title."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    since: Detail = Detail.TERMINAL
