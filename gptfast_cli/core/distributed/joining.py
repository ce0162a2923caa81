"""Becoming one of the ranks of a job: a process finds the others, and falls silent unless it is rank 0."""

import contextlib
import datetime as dt
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store  # whose public names mypy does not see
from torch.distributed.rendezvous import rendezvous

from gptfast_cli import __version__
from gptfast_cli.core.distributed.group import Group
from gptfast_cli.core.distributed.rank import FOLDER, LostRankError, Rank
from gptfast_cli.core.errors import NetworkError, UsageError

_PATIENCE = dt.timedelta(minutes=10)  # with a rank that is there and does not come, as while it loads
_MEETING = "store"
_SHOWN_CHARACTERS = 200


@contextlib.contextmanager
def joined(rank: Rank, arguments: Sequence[str], *, patience: dt.timedelta = _PATIENCE) -> Iterator[Group]:
    """The group of all ranks for the block; they wait for one another for `patience`.

    Raises UsageError where another was started with other arguments, NetworkError where the ranks of several machines
    do not find one another, LostRankError where one of this machine has ended.
    """
    if rank.number != 0:
        _fall_silent()
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.n_local))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local)
    _meet(rank, os.environ, patience)
    try:
        assert dist.group.WORLD is not None
        group = Group(dist.group.WORLD, rank.n_local)
        _check_alike(group, arguments)
        yield group
    finally:
        dist.destroy_process_group()


def _meet(rank: Rank, environment: Mapping[str, str], patience: dt.timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    folder = environment.get(FOLDER)
    try:
        store = _store_of_launcher(patience) if folder is None else FileStore(str(Path(folder) / _MEETING), rank.size)
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.size, timeout=patience)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable of torchrun's that is missing or no number
        reason = " ".join(str(error).split("\n")[0].split())[:_SHOWN_CHARACTERS]
        if folder is not None:
            raise LostRankError(f"The ranks did not find one another: {reason}") from error
        place = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        raise NetworkError(
            f"Rank {rank.number} of {rank.size} did not find the others by {place}.\n{reason}",
            "The address is one of rank 0's machine, the port free there and open to the others? Another port, on all\n"
            "machines: torchrun --master-port 29501. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface\n"
            "between the machines, such as eth0.",
        ) from error


def _store_of_launcher(patience: dt.timedelta) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT, as torchrun says; raises RuntimeError and ValueError.

    In a thread, as a program at that port that is no store and keeps silent would be waited for without end.
    """
    found: queue.SimpleQueue[Store | RuntimeError | ValueError] = queue.SimpleQueue()

    def find() -> None:
        try:
            store, _, _ = next(rendezvous("env://", timeout=2 * patience))
            store.set_timeout(patience)
            found.put(store)
        except (RuntimeError, ValueError) as error:
            found.put(error)

    threading.Thread(target=find, daemon=True).start()
    try:
        store = found.get(timeout=patience.total_seconds())
    except queue.Empty:
        raise RuntimeError(f"Not all of them were there within {patience.total_seconds():,.0f} seconds.") from None
    if isinstance(store, Exception):
        raise store
    return store


def _fall_silent() -> None:
    """Say nothing, and leave a Ctrl-C to rank 0, which ends what is under way and with it all others."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # to the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_alike(group: Group, arguments: Sequence[str]) -> None:
    everyone = group.exchange([__version__, *arguments])
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise UsageError(
                f"Rank {rank} was started otherwise than rank 0:\n{_shown(other)}\n{_shown(everyone[0])}",
                "Start all of them by the same command, and the same version.",
            )


def _shown(started: Sequence[str]) -> str:
    version, *arguments = started
    return f"gptfast {version}: {' '.join(arguments)}"
