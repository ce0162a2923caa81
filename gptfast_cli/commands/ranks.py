"""Ranks of a command with --tp: it launches them, is one of them, or runs alone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gptfast_cli.core.distributed.rank import this_rank
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup


def is_sharded(n_ranks: int | None) -> bool:
    """Whether several ranks share the model: those that `--tp` is to launch, or those of torchrun."""
    rank = this_rank()
    return (n_ranks or 1) > 1 if rank is None else rank.size > 1


@contextmanager
def ranks(n_ranks: int | None) -> Iterator[ProcessGroup]:
    """The process group of `--tp`; a process that launches ranks exits with their code and never enters the block."""
    rank = this_rank()
    if rank is not None:
        if n_ranks not in (None, rank.size):
            raise UsageError(f"--tp {n_ranks}: the launcher started {rank.size} ranks.", "Leave out --tp.")
        from gptfast_cli.core.distributed.group import joined

        with joined(rank, sys.argv[1:]) as group:
            yield group
    elif n_ranks in (None, 1):
        yield ALONE
    else:
        from gptfast_cli.core.distributed.launch import launch

        raise typer.Exit(launch(n_ranks, sys.argv[1:]))
