"""The collective of torch.distributed: NCCL between GPUs, gloo between CPUs."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as functional  # those that can be compiled

from gptfast_cli.core.distributed.rank import LostRankError
from gptfast_cli.core.model.collective import ALONE, Collective, T

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

    def first(self, count: int) -> Collective | None:
        """See Collective."""
        group = dist.new_group(range(count))
        if self.rank >= count:
            return None
        return ALONE if count == 1 else Group(group, min(count, self.n_here))  # machines are filled in their order

    def sum(self, x: Tensor) -> Tensor:
        """See Collective."""
        if torch.compiler.is_compiling():
            return cast("Tensor", functional.all_reduce(x, "sum", self._group))
        with self._timed():
            if x.device.type == "cpu" and x.nbytes <= _SMALL_BYTES:
                return x.copy_(torch.stack(self._gathered(x)).sum(dim=0))
            dist.all_reduce(x, group=self._group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """See Collective."""
        with self._timed():
            return torch.cat(self._gathered(x), dim=-1)

    def agree(self, value: T) -> T:
        """See Collective."""
        with self._timed():
            content = _encoded(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
            n_bytes = torch.tensor(len(content))
            dist.broadcast(n_bytes, group_src=0, group=self._group)
            content = content if self.rank == 0 else torch.empty(int(n_bytes), dtype=torch.uint8)
            dist.broadcast(content, group_src=0, group=self._group)
        return cast("T", _decoded(content))

    def exchange(self, value: T) -> list[T]:
        """See Collective."""
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
        """See Collective."""
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
