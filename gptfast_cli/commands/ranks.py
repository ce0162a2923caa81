"""How a command comes to its ranks: it starts them, is one of them, or goes alone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gptfast_cli.core.distributed.rank import this_rank
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup


def is_sharded(n_ranks: int | None) -> bool:
    """Whether several processes hold a model: those that are going to be started, or that this one is of."""
    rank = this_rank()
    return (n_ranks or 1) > 1 if rank is None else rank.size > 1


@contextmanager
def ranks(n_ranks: int | None) -> Iterator[ProcessGroup]:
    """What `--tp` asks for, for the block; the process that starts ranks ends with them, and never enters it."""
    rank = this_rank()
    if rank is not None:
        if n_ranks not in (None, rank.size):
            raise UsageError(f"--tp {n_ranks}: the launcher has started {rank.size} ranks.", "Leave out --tp.")
        from gptfast_cli.core.distributed.group import joined

        with joined(rank, sys.argv[1:]) as group:
            yield group
    elif n_ranks in (None, 1):
        yield ALONE
    else:
        from gptfast_cli.core.distributed.launch import launch

        raise typer.Exit(launch(n_ranks, sys.argv[1:]))
