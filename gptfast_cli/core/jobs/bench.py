"""`bench`: how fast a model feeds prompts and generates, at each batch size, length and depth, and on so many ranks.

The numbers of ranks are contenders of one run: each keeps its own part of the model to the end, so that its rows take
turns with those of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from gptfast_cli.core.backends import Backend
from gptfast_cli.core.bench.bandwidth import Bandwidth, Probe
from gptfast_cli.core.bench.environment import Clock, PeakMemory, device_clock, environment
from gptfast_cli.core.bench.record import Bench, bench_row, memory_bandwidth
from gptfast_cli.core.bench.repetitions import TimedRow, Work, measured
from gptfast_cli.core.bench.throughput import RankSubset, rank_subset_of
from gptfast_cli.core.bench.workload import Case, CaseOptions, Workload
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.device import available_memory_bytes, check_fits, dtype_name, pick_device, pick_dtype
from gptfast_cli.core.engine.build import RuntimeConfig, Storages, check_sharded
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.load import (
    RANDOM_DTYPE,
    LoadedModel,
    load,
    load_random,
    planned_bytes,
)
from gptfast_cli.core.engine.ranges import check_at_least, check_seed
from gptfast_cli.core.engine.shapes import Shape, read_shape
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, without_notes
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.sizes import stored
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure, and how often.

    arch:       a SHAPE to measure with random weights, stored as `allocation` says, in place of `model`
    tps:        numbers of ranks to share the model, of those that the placing has; none are all of them
    n_rounds:   repetitions of each case that count
    """

    settings: Settings
    model: str | None = None
    arch: str | None = None
    allocation: AllocationOptions = AllocationOptions("plain")
    runtime: RuntimeConfig = RuntimeConfig()
    compiling: Compiling = Compiling()
    cases: CaseOptions = CaseOptions()
    tps: tuple[int, ...] = ()
    n_rounds: int = 5
    seed: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of ranks, each a contender."""
        return self.tps or (self.runtime.group.size,)


class MemoryReader(Protocol):
    """What Probe is."""

    n_bytes: int

    def measure(self) -> Bandwidth:
        """See Probe."""
        ...


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a measurement rests on, and what a test gives to know what must come out."""

    clock: Callable[[torch.device], Clock] = device_clock
    probe: Callable[[torch.device, Clock], MemoryReader] = Probe
    backend: Backend | None = None  # None is what the placing says


@dataclass(frozen=True, slots=True)
class _ModelOnRanks:
    """A model on some ranks; subject and workload are None on one that stands by."""

    rank_subset: RankSubset
    loaded: LoadedModel | None
    workload: Workload | None

    @property
    def n_bytes(self) -> int:
        """That its weights take on this rank."""
        return 0 if self.loaded is None else self.loaded.model.weight_bytes

    def row(self, case: Case, other_model_bytes: int) -> TimedRow:
        """What it does of a case; see Row."""
        row = TimedRow(case.title, case.phase, case.total_tokens, _nothing)
        if self.workload is not None:
            row = self.workload.row(case)
        name = row.name if self.rank_subset.everyone.size == 1 else f"{row.name}, tp {self.rank_subset.size}"
        return replace(row, name=name, rank_subset=self.rank_subset, other_model_bytes=other_model_bytes)


def run(request: BenchRequest, instruments: Instruments = Instruments()) -> Job[Bench]:
    """Measure; an interrupt once rows are being timed ends it early, with all that is there.

    Every rank runs it; the record is that of the first one. Raises UsageError for values out of range, what loading and
    compiling raise, and OutOfMemoryError for a shape that has no room. A row that fails has its error in the record,
    and the others go on.
    """
    cases = _cases(request)
    device = pick_device(request.runtime.device)
    now = instruments.clock(device)
    shape = None if request.arch is None else read_shape(request.arch)
    _check_sharding(request, shape)
    if shape is not None:
        _check_room(shape, request, device)
    probe = instruments.probe(device, now)  # before the model: its memory is apart from what rows are charged with
    models: list[_ModelOnRanks] = []
    for n_ranks in request.sizes:
        making = _load_on_ranks(request, n_ranks, shape, instruments.backend)
        models.append((yield from (without_notes(making) if models else making)))
    compile_s: dict[int, float] | None = None
    for model in models:
        if model.workload is not None:
            compile_s = yield from model.workload.compile(cases, request.compiling, request.settings)
    widest = max(models, key=lambda model: model.rank_subset.size)
    loaded = widest.loaded
    assert loaded is not None  # every rank is of it
    with widest.rank_subset.threads():
        env = environment(device, loaded.model.dtype, widest.rank_subset.size)
    held = sum(model.n_bytes for model in models)
    n_bytes = sum(request.runtime.group.exchange(widest.n_bytes))
    entries = [(case, model) for case in cases for model in models]
    bandwidths: list[float] = []

    def read_bandwidth() -> Bandwidth:
        bandwidth = probe.measure()
        bandwidths.append(bandwidth.bytes_per_second)
        return bandwidth

    outcomes = yield from measured(
        [model.row(case, held - model.n_bytes) for case, model in entries],
        request.n_rounds,
        now=now,
        probe=read_bandwidth,
        memory=PeakMemory(device, probe.n_bytes),
    )
    return Bench(
        environment=env,
        model=loaded.name,
        scheme=loaded.scheme,
        head_scheme=loaded.head_scheme,
        kv_dtype=dtype_name(loaded.model.kv_dtype),
        n_params=loaded.n_params,
        n_bytes=n_bytes,
        seed=request.seed,
        load_s=loaded.seconds,
        compile_s=compile_s,
        bandwidth=memory_bandwidth(bandwidths),
        n_rounds=request.n_rounds,
        rows=tuple(
            bench_row(case, model.rank_subset.size, outcome, loaded)
            for (case, model), outcome in zip(entries, outcomes, strict=True)
        ),
    )


def _cases(request: BenchRequest) -> tuple[Case, ...]:
    """The cases, once everything is in its range."""
    check_seed(request.seed)
    options = request.cases
    check_at_least(1, {"--reps": request.n_rounds, "--batch-size": min(options.batch_sizes, default=0)})
    check_at_least(0, {"--depth": min(options.depths, default=0)})
    lengths = {"--prompt-len": options.prompt_lens, "--gen-len": options.gen_lens}
    check_at_least(1, {option: min(values) for option, values in lengths.items() if values})
    cases = options.cases()
    if not cases:
        raise UsageError("There is nothing to measure.", "Give --prompt-len or --gen-len a length, such as 128.")
    return cases


def _check_sharding(request: BenchRequest, shape: Shape | None) -> None:
    """Raise UsageError where some number of ranks cannot be dealt the model, before any of it is loaded."""
    if max(request.sizes) == 1:
        return
    storages: Storages
    if shape is None:
        checkpoint = open_checkpoint(resolve(request.model, request.settings).path)
        config, storages = checkpoint.config, partial(stored, checkpoint)
    else:
        config, storages = shape.config, partial(request.allocation.allocation(shape.config).of, shape.config)
    for n_ranks in request.sizes:
        check_sharded(config, storages, n_ranks)


def _check_room(shape: Shape, request: BenchRequest, device: torch.device) -> None:
    """Raise OutOfMemoryError where a CPU's memory cannot hold the weights: the system would end the process instead."""
    dtype = pick_dtype(request.runtime.dtype, RANDOM_DTYPE, device)
    whole = planned_bytes(shape.config, request.allocation.allocation(shape.config), dtype)
    needed = sum(whole * min(size, request.runtime.group.n_here) / size for size in request.sizes)
    if device.type == "cpu":
        hint = "Take a smaller shape, or fewer bits: int4"
        check_fits(int(needed), f"The weights of {shape.name}", hint, available_memory_bytes())


def _load_on_ranks(
    request: BenchRequest, size: int, shape: Shape | None, backend: Backend | None
) -> Job[_ModelOnRanks]:
    rank_subset = rank_subset_of(request.runtime.group, size, request.runtime.threads)
    if rank_subset.group is None:
        return _ModelOnRanks(rank_subset, None, None)
    runtime = replace(request.runtime, threads=rank_subset.n_threads, group=rank_subset.group)
    if shape is None:
        loaded = yield from load(request.model, request.settings, runtime, backend)
    else:
        loaded = yield from load_random(
            shape, request.allocation, runtime, seed=request.seed, settings=request.settings, torch_backend=backend
        )
    return _ModelOnRanks(rank_subset, loaded, Workload(loaded.model, request.seed))


def _nothing() -> Work:
    """What a rank that stands by makes ready."""
    raise AssertionError("it is not its turn")
