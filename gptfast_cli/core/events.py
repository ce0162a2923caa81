"""The frozen events that a job yields while it works, and the type of a job.

A job is a generator: it yields events and returns a frozen result. The same job is shown live by
`render`, drained by a test, printed as JSON, and composed with `yield from`.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long task has come; `total` is None while it is not known.

    part:   of a task whose parts go on side by side, the one that this is about, such as a file's name; None is all
    so_far: of a measurement, what it comes to as far as it has come; None or NaN if there is nothing yet
    """

    task: str
    done: int
    total: int | None
    unit: Literal["bytes", "tokens", "rows", "blocks", "runs", "requests", "windows"]
    part: str | None = None
    so_far: float | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """One line that a person should read, such as which model was taken."""

    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is being continued, as the person gave it; `continues`: the text goes on in its line, and is no answer."""

    text: str
    continues: bool


@dataclass(frozen=True, slots=True)
class TextChunk:
    """The next piece of a sample's text, whole characters only.

    is_reasoning: it belongs to the reasoning before the answer, or to its delimiters
    """

    sample: int
    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample that is over: no text of it follows."""

    sample: int


@dataclass(frozen=True, slots=True)
class Record:
    """One finished row of a file of prompts, ready to be written as JSON."""

    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Measured:
    """Finished work of one phase: tokens that it processed, summed over the batch, and its wall time.

    The first token of a sequence needs no step of its own: drawing it is a phase by itself, not decoding.
    n_sequences: that took part
    n_rounds:    of speculation, each of one sequence; n_accepted: of their tokens, those that a draft proposed
    """

    phase: Literal["prefill", "first token", "decode"]
    n_tokens: int
    seconds: float
    n_sequences: int = 1
    n_rounds: int = 0
    n_accepted: int = 0


Event: TypeAlias = Progress | Note | Prompt | TextChunk | Finished | Record | Measured

T = TypeVar("T")
Job: TypeAlias = Generator[Event, None, T]


def result_of(job: Job[T]) -> T:
    """What a job returns, where nobody watches its events."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries


def without_notes(job: Job[T]) -> Job[T]:
    """The same job, where what it has to say has been said already."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # see result_of
        if not isinstance(event, Note):
            yield event
