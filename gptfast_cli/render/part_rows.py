"""Rows of things that go on side by side, such as files that are fetched: how far, how fast, and what is left."""

from typing import Final

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from gptfast_cli.render.numbers import size

_NAME_COLUMNS = 28


class _Rate(ProgressColumn):
    """Bytes a second, of late."""

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        return Text(f"{size(task.speed)}/s" if task.speed else "")


PART_COLUMNS: Final[tuple[ProgressColumn, ...]] = (
    TextColumn(
        "{task.description}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis", max_width=_NAME_COLUMNS),
    ),
    BarColumn(bar_width=10),
    TextColumn("{task.fields[so_far]}", markup=False, table_column=Column(no_wrap=True)),
    _Rate(table_column=Column(no_wrap=True)),
    TimeRemainingColumn(compact=True),
)
