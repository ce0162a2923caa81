"""Windows of a text: what a model reads at once, and how they go through it some at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptfast_cli.core.measure.scoring.passages import Passage


@dataclass(frozen=True, slots=True)
class Window:
    """A passage, and the weight of its mean among those of all windows, in tokens."""

    passage: Passage
    weight: int


def groups(windows: Iterable[Window], n_most: int) -> Iterator[list[Window]]:
    """Windows in their order, together as long as they have at most so many tokens; a longer one is a group."""
    group: list[Window] = []
    n_tokens = 0
    for window in windows:
        if group and n_tokens + len(window.passage.tokens) > n_most:
            yield group
            group, n_tokens = [], 0
        group.append(window)
        n_tokens += len(window.passage.tokens)
    if group:
        yield group
