"""Our side of a pair: the work of `gptfast bench`, on a model that stays in memory between pairs.

Between our turns the engine's threads sleep, so that they take nothing from the peer. Before its first turn each test
is warmed up once as llama-bench does it before every one of its own: a prompt as a whole, decoding by one token.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from gptfast_cli.core.bench.bandwidth import Probe
from gptfast_cli.core.bench.environment import device_clock
from gptfast_cli.core.bench.workload import Case, Workload
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.events import Event
from gptfast_cli.core.settings import load_settings

T = TypeVar("T")

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class OurModel:
    """A checkpoint in memory, on the backend that the command would choose."""

    subject: LoadedModel
    workload: Workload

    @property
    def step_bytes(self) -> int:
        """Bytes of the weights that each step reads all of: all but the embedding, unless it is the head too."""
        model = self.subject.model
        return model.weight_bytes - (0 if model.config.tied_embeddings else model.embedding_bytes)

    def timed(self, case: Case) -> Callable[[], float]:
        """A turn: do the work of a case once, and return tokens a second."""
        self.workload.row(case if case.phase == "prefill" else replace(case, n_tokens=1)).prepare()()
        row, now = self.workload.row(case), device_clock(_CPU)

        def turn() -> float:
            work = row.prepare()
            begin = now()
            work()
            return case.total_tokens / (now() - begin)

        return turn


def load_ours(folder: Path, n_threads: int) -> OurModel:
    """Load a checkpoint as `gptfast bench FOLDER` does; raises what that raises."""
    subject = _result(load(str(folder), load_settings(), RuntimeConfig("cpu", threads=n_threads)))
    return OurModel(subject, Workload(subject.model, seed=0))


def read_bandwidth() -> Callable[[], float]:
    """A probe of the memory: GB/s that it reads now, with GB = 1e9 bytes."""
    probe = Probe(_CPU, device_clock(_CPU))
    return lambda: probe.measure().bytes_per_second / 1e9


def _result(job: Generator[Event, None, T]) -> T:
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value
