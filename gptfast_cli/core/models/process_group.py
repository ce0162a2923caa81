"""Process groups of tensor parallelism: what a model asks of the ranks that hold its shards.

It loads no PyTorch, so that a command that runs in one process does not wait for it here.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound="bool | float | str | list[Any] | dict[str, Any] | None")
"""Sent between ranks as JSON: nothing that another process sends is ever unpickled. No tuples, no dataclasses."""


class ProcessGroup(Protocol):
    """Some ranks, each with a part of the same model and the same tokens."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def n_here(self) -> int:
        """How many of them are on this machine, and share its cores."""
        ...

    @property
    def seconds(self) -> float:
        """Spent in all of these so far."""
        ...

    def first(self, count: int) -> "ProcessGroup | None":
        """The first so many of them by themselves, and None on the others; every rank has to ask for it."""
        ...

    def sum(self, x: "Tensor") -> "Tensor":
        """The sum of what every rank has, of one shape and dtype, with the same bits on each; x may be overwritten."""
        ...

    def gather(self, x: "Tensor") -> "Tensor":
        """What every rank has, [..., n], side by side in the order of ranks: [..., size * n]."""
        ...

    def broadcast(self, value: T) -> T:
        """What rank 0 has: a number that each could choose for itself, and all must choose alike."""
        ...

    def exchange(self, value: T) -> list[T]:
        """What every rank has, in their order."""
        ...

    def guarded(self) -> AbstractContextManager[None]:
        """For compiled work, whose collectives cannot say for themselves that another rank is gone."""
        ...


class _Alone:
    """A group of one rank, which holds the whole model."""

    rank = 0
    size = 1
    n_here = 1
    seconds = 0.0

    def first(self, count: int) -> ProcessGroup:  # noqa: ARG002  (of one)
        return self

    def sum(self, x: "Tensor") -> "Tensor":
        return x

    def gather(self, x: "Tensor") -> "Tensor":
        return x

    def broadcast(self, value: T) -> T:
        return value

    def exchange(self, value: T) -> list[T]:
        return [value]

    def guarded(self) -> AbstractContextManager[None]:
        return nullcontext()


ALONE: Final[ProcessGroup] = _Alone()
