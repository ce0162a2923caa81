"""A process group over torch.distributed, and joining it."""

import contextlib
import datetime as dt
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store  # whose public names mypy does not see
from torch.distributed import _functional_collectives as functional  # those that can be compiled
from torch.distributed.rendezvous import rendezvous

from gptfast_cli import __version__
from gptfast_cli.core.distributed.rank import FOLDER, LostRankError, Rank
from gptfast_cli.core.errors import NetworkError, UsageError
from gptfast_cli.core.models.sharding import ALONE, ProcessGroup, T

_SMALL_BYTES = 1 << 16
"""That ranks on CPUs send to all others at once, and each adds up: gloo's all-reduce takes more turns."""


class Group:
    """See Collective; processes that a launcher has started."""

    def __init__(self, group: dist.ProcessGroup, n_here: int) -> None:
        self._group = group
        self.n_here = n_here
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.seconds = 0.0
        """Spent in collectives so far, waiting for the slowest rank included; on a GPU until they are queued."""

    def first(self, count: int) -> ProcessGroup | None:
        """See ProcessGroup."""
        group = dist.new_group(range(count))
        if self.rank >= count:
            return None
        return ALONE if count == 1 else Group(group, min(count, self.n_here))  # machines are filled in their order

    def sum(self, x: Tensor) -> Tensor:
        """See ProcessGroup."""
        if torch.compiler.is_compiling():
            return cast("Tensor", functional.all_reduce(x, "sum", self._group))
        with self._timed():
            if x.device.type == "cpu" and x.nbytes <= _SMALL_BYTES:
                return x.copy_(torch.stack(self._gathered(x)).sum(dim=0))
            dist.all_reduce(x, group=self._group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """See ProcessGroup."""
        with self._timed():
            return torch.cat(self._gathered(x), dim=-1)

    def broadcast(self, value: T) -> T:
        """See ProcessGroup."""
        with self._timed():
            content = _encoded(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
            n_bytes = torch.tensor(len(content))
            dist.broadcast(n_bytes, group_src=0, group=self._group)
            content = content if self.rank == 0 else torch.empty(int(n_bytes), dtype=torch.uint8)
            dist.broadcast(content, group_src=0, group=self._group)
        return cast("T", _decoded(content))

    def exchange(self, value: T) -> list[T]:
        """See ProcessGroup."""
        content = _encoded(value)
        with self._timed():
            n_bytes = [int(n) for n in self._gathered(torch.tensor([len(content)]))]
            padded = torch.zeros(max(n_bytes), dtype=torch.uint8)
            padded[: len(content)] = content
            contents = self._gathered(padded)
        return [cast("T", _decoded(each[:n])) for each, n in zip(contents, n_bytes, strict=True)]

    def _gathered(self, x: Tensor) -> list[Tensor]:
        """What every rank has, in their order."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return parts

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """See ProcessGroup."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise LostRankError("Another rank is gone.") from error
            raise

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            with self.guarded():
                yield
        finally:
            self.seconds += time.perf_counter() - begin


def _encoded(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(content: Tensor) -> Any:  # noqa: ANN401  (JSON)
    return json.loads(content.numpy().tobytes())


_PATIENCE = dt.timedelta(minutes=10)  # with a rank that is there and does not come, as while it loads
_MEETING = "store"
_SHOWN_CHARACTERS = 200


@contextlib.contextmanager
def joined(rank: Rank, arguments: Sequence[str], *, retry_policy: dt.timedelta = _PATIENCE) -> Iterator[Group]:
    """The group of all ranks for the block; they wait for one another for `retry_policy`.

    Raises UsageError where another was started with other arguments, NetworkError where the ranks of several machines
    do not find one another, LostRankError where one of this machine has ended.
    """
    if rank.number != 0:
        _fall_silent()
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.n_local))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local)
    _meet(rank, os.environ, retry_policy)
    try:
        assert dist.group.WORLD is not None
        group = Group(dist.group.WORLD, rank.n_local)
        _check_alike(group, arguments)
        yield group
    finally:
        dist.destroy_process_group()


def _meet(rank: Rank, environment: Mapping[str, str], retry_policy: dt.timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    folder = environment.get(FOLDER)
    try:
        store = (
            _store_of_launcher(retry_policy) if folder is None else FileStore(str(Path(folder) / _MEETING), rank.size)
        )
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.size, timeout=retry_policy)
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


def _store_of_launcher(retry_policy: dt.timedelta) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT, as torchrun says; raises RuntimeError and ValueError.

    In a thread, as a program at that port that is no store and keeps silent would be waited for without end.
    """
    found: queue.SimpleQueue[Store | RuntimeError | ValueError] = queue.SimpleQueue()

    def find() -> None:
        try:
            store, _, _ = next(rendezvous("env://", timeout=2 * retry_policy))
            store.set_timeout(retry_policy)
            found.put(store)
        except (RuntimeError, ValueError) as error:
            found.put(error)

    threading.Thread(target=find, daemon=True).start()
    try:
        store = found.get(timeout=retry_policy.total_seconds())
    except queue.Empty:
        raise RuntimeError(f"Not all of them were there within {retry_policy.total_seconds():,.0f} seconds.") from None
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
