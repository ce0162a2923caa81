"""Becoming one of the ranks of a job: a process finds the others, and falls silent unless it is rank 0."""

import contextlib
import datetime as dt
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from gptfast_cli import __version__
from gptfast_cli.core.distributed.group import Group
from gptfast_cli.core.distributed.rank import Rank
from gptfast_cli.core.errors import UsageError

_PATIENCE = dt.timedelta(minutes=10)  # with a rank that is there and does not come, as while it loads


@contextlib.contextmanager
def joined(rank: Rank, arguments: Sequence[str]) -> Iterator[Group]:
    """The group of all ranks for the block; raises UsageError where another was started with other arguments."""
    if rank.number != 0:
        _fall_silent()
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.n_local))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        assert dist.group.WORLD is not None
        group = Group(dist.group.WORLD, rank.n_local)
        _check_alike(group, arguments)
        yield group
    finally:
        dist.destroy_process_group()


def _fall_silent() -> None:
    """Say nothing, and leave a Ctrl-C to rank 0, which ends what is under way and with it all others."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # to the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_alike(group: Group, arguments: Sequence[str]) -> None:
    everyone = group.exchange((__version__, tuple(arguments)))
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise UsageError(
                f"Rank {rank} was started otherwise than rank 0:\n{_shown(other)}\n{_shown(everyone[0])}",
                "Start all of them by the same command, and the same version.",
            )


def _shown(started: tuple[str, tuple[str, ...]]) -> str:
    version, arguments = started
    return f"gptfast {version}: {' '.join(arguments)}"
