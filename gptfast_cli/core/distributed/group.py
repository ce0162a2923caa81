"""The process group of all ranks over torch.distributed: gloo on CPUs, NCCL on GPUs."""

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
from torch._C._distributed_c10d import FileStore, Store  # mypy does not see the public names
from torch.distributed import _functional_collectives as functional  # the variants that torch.compile supports
from torch.distributed.rendezvous import rendezvous

from gptfast_cli import __version__
from gptfast_cli.core.distributed.rank import FOLDER, LostRankError, Rank
from gptfast_cli.core.errors import NetworkError, UsageError
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup, T

_SMALL_BYTES = 1 << 16
"""Up to this size an all-reduce on CPUs is one all-gather and a local sum: fewer messages than gloo's all-reduce."""


class TorchProcessGroup:
    """A ProcessGroup of processes that a launcher has started."""

    def __init__(self, group: dist.ProcessGroup, n_here: int) -> None:
        self._group = group
        self.n_here = n_here
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.seconds = 0.0
        """Time spent in collectives, waiting for the slowest rank included; on a GPU only until they are queued."""

    def first(self, count: int) -> ProcessGroup | None:
        group = dist.new_group(range(count))
        if self.rank >= count:
            return None
        return (
            ALONE if count == 1 else TorchProcessGroup(group, min(count, self.n_here))
        )  # ranks fill machines in order

    def sum(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return cast("Tensor", functional.all_reduce(x, "sum", self._group))
        with self._timed():
            if x.device.type == "cpu" and x.nbytes <= _SMALL_BYTES:
                return x.copy_(torch.stack(self._gathered(x)).sum(dim=0))
            dist.all_reduce(x, group=self._group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        with self._timed():
            return torch.cat(self._gathered(x), dim=-1)

    def broadcast(self, value: T) -> T:
        with self._timed():
            content = _encoded(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
            n_bytes = torch.tensor(len(content))
            dist.broadcast(n_bytes, group_src=0, group=self._group)
            content = content if self.rank == 0 else torch.empty(int(n_bytes), dtype=torch.uint8)
            dist.broadcast(content, group_src=0, group=self._group)
        return cast("T", _decoded(content))

    def exchange(self, value: T) -> list[T]:
        content = _encoded(value)
        with self._timed():
            n_bytes = [int(n) for n in self._gathered(torch.tensor([len(content)]))]
            padded = torch.zeros(max(n_bytes), dtype=torch.uint8)
            padded[: len(content)] = content
            contents = self._gathered(padded)
        return [cast("T", _decoded(each[:n])) for each, n in zip(contents, n_bytes, strict=True)]

    def _gathered(self, x: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in rank order."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return parts

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
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


_TIMEOUT = dt.timedelta(minutes=10)  # of a collective: another rank may still be loading its shard
_STORE_FILE = "store"
_SHOWN_CHARACTERS = 200


@contextlib.contextmanager
def joined(rank: Rank, arguments: Sequence[str], *, timeout: dt.timedelta = _TIMEOUT) -> Iterator[TorchProcessGroup]:
    """Join the process group of all ranks for the block; `timeout` limits rendezvous and each collective.

    Raises UsageError if a rank was started with other arguments, NetworkError if the rendezvous of several machines
    fails, LostRankError if a rank of this machine has ended.
    """
    if rank.number != 0:
        _silence()
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.n_local))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local)
    _rendezvous(rank, os.environ, timeout)
    try:
        assert dist.group.WORLD is not None
        group = TorchProcessGroup(dist.group.WORLD, rank.n_local)
        _check_same_arguments(group, arguments)
        yield group
    finally:
        dist.destroy_process_group()


def _rendezvous(rank: Rank, environment: Mapping[str, str], timeout: dt.timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    folder = environment.get(FOLDER)
    try:
        store = _store_of_launcher(timeout) if folder is None else FileStore(str(Path(folder) / _STORE_FILE), rank.size)
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:  # ValueError: MASTER_PORT is missing or not a number
        reason = " ".join(str(error).split("\n")[0].split())[:_SHOWN_CHARACTERS]
        if folder is not None:
            raise LostRankError(f"Rendezvous of the ranks failed: {reason}") from error
        place = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        raise NetworkError(
            f"Rank {rank.number} of {rank.size} did not find the others by {place}.\n{reason}",
            "Check that MASTER_ADDR is rank 0's machine and that the port is free and reachable. Another port, on\n"
            "all machines: torchrun --master-port 29501. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME select the network\n"
            "interface, such as eth0.",
        ) from error


def _store_of_launcher(timeout: dt.timedelta) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT, set by torchrun. Raises RuntimeError and ValueError.

    It is opened in a thread: torch waits without limit for another program that listens on the port and never answers.
    """
    found: queue.SimpleQueue[Store | RuntimeError | ValueError] = queue.SimpleQueue()

    def find() -> None:
        try:
            store, _, _ = next(rendezvous("env://", timeout=2 * timeout))
            store.set_timeout(timeout)
            found.put(store)
        except (RuntimeError, ValueError) as error:
            found.put(error)

    threading.Thread(target=find, daemon=True).start()
    try:
        store = found.get(timeout=timeout.total_seconds())
    except queue.Empty:
        raise RuntimeError(f"Not all ranks joined within {timeout.total_seconds():,.0f} seconds.") from None
    if isinstance(store, Exception):
        raise store
    return store


def _silence() -> None:
    """Discard output and ignore Ctrl-C: rank 0 handles it and ends all ranks."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # open until the process ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_same_arguments(group: TorchProcessGroup, arguments: Sequence[str]) -> None:
    everyone = group.exchange([__version__, *arguments])
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise UsageError(
                f"Rank {rank} was started with other arguments than rank 0:\n{_shown(other)}\n{_shown(everyone[0])}",
                "Start all ranks with the same command and the same version.",
            )


def _shown(started: Sequence[str]) -> str:
    version, *arguments = started
    return f"gptfast {version}: {' '.join(arguments)}"
