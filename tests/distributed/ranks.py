"""Functions of the tests on several ranks, each in a process of its own, as a launcher would start them."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptfast_cli.core.distributed.group import TorchProcessGroup

SECONDS = 300
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "gptfast_cli.core.engine.build"])  # each rank is a copy of it


def on_ranks(n_ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(group, *arguments)` returns on each rank; it must be a module's own function."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            CONTEXT.Process(target=_rank, args=(rank, n_ranks, folder, work, arguments), daemon=True)
            for rank in range(n_ranks)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
        assert [rank.exitcode for rank in ranks] == [0] * n_ranks
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(n_ranks)]


def _rank(rank: int, n_ranks: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), n_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks)
    assert dist.group.WORLD is not None
    try:
        torch.save(work(TorchProcessGroup(dist.group.WORLD, n_ranks), *arguments), Path(folder) / str(rank))
    finally:
        dist.destroy_process_group()
