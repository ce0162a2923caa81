"""`bench`: prefill and decode speed of a model at each batch size, length, depth and number of ranks.

All numbers of ranks are measured in one run: each keeps its shard of the model in memory, and its rows are interleaved
with those of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from gptfast_cli.core.backends.base import Backend
from gptfast_cli.core.bench.bandwidth import Bandwidth, Probe
from gptfast_cli.core.bench.comparison import ComparisonOptions, check_comparable, compare, conditions, read_record
from gptfast_cli.core.bench.environment import Clock, PeakMemory, device_clock, environment
from gptfast_cli.core.bench.record import Bench, bench_row, memory_bandwidth
from gptfast_cli.core.bench.repetitions import TimedRow, Work, measured
from gptfast_cli.core.bench.throughput import RankSubset, rank_subset_of
from gptfast_cli.core.bench.workload import Case, CaseOptions, Workload
from gptfast_cli.core.checkpoints.checkpoint import outline_of
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.device import dtype_name, pick_device, pick_dtype
from gptfast_cli.core.engine.build import Outline, RuntimeConfig, check_sharded
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.load import RANDOM_DTYPE, LoadedModel, load, load_random, planned_bytes
from gptfast_cli.core.engine.options import check_at_least, check_seed
from gptfast_cli.core.engine.shapes import Shape, read_shape
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, without_notes
from gptfast_cli.core.memory import available_memory_bytes, check_fits
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure.

    arch:       SHAPE to measure with random weights in the schemes of `allocation`, in place of `model`
    tps:        numbers of ranks that share the model; empty for all ranks of the runtime
    n_rounds:   timed repetitions of each case
    comparison: older record to compare with
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
    comparison: ComparisonOptions | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of ranks to measure."""
        return self.tps or (self.runtime.group.size,)


class MemoryReader(Protocol):
    """A bandwidth probe, as `Probe` is."""

    n_bytes: int

    def measure(self) -> Bandwidth: ...


@dataclass(frozen=True, slots=True)
class Instruments:
    """Clock, bandwidth probe and backend; tests replace them for exact results."""

    clock: Callable[[torch.device], Clock] = device_clock
    probe: Callable[[torch.device, Clock], MemoryReader] = Probe
    backend: Backend | None = None  # None: as the runtime says


@dataclass(frozen=True, slots=True)
class _ModelOnRanks:
    """A model on some ranks; loaded and workload are None on a rank that does not take part."""

    rank_subset: RankSubset
    loaded: LoadedModel | None
    workload: Workload | None

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights on this rank."""
        return 0 if self.loaded is None else self.loaded.model.weight_bytes

    def row(self, case: Case, other_model_bytes: int) -> TimedRow:
        """The timed row of a case."""
        row = TimedRow(case.title, case.phase, case.total_tokens, _nothing)
        if self.workload is not None:
            row = self.workload.row(case)
        name = row.name if self.rank_subset.everyone.size == 1 else f"{row.name}, tp {self.rank_subset.size}"
        return replace(row, name=name, rank_subset=self.rank_subset, other_model_bytes=other_model_bytes)


def run(request: BenchRequest, instruments: Instruments = Instruments()) -> Job[Bench]:
    """Measure; an interrupt while rows are timed returns the rows so far.

    Every rank runs it; rank 0's record counts. A failed row has its error in the record, and the others go on. Raises
    UsageError for values out of range, OutOfMemoryError for a shape that does not fit, what loading and compiling
    raise, and of an older record what `read_record` and `check_comparable` do.
    """
    cases = _cases(request)
    older = None if request.comparison is None else read_record(request.comparison)
    device = pick_device(request.runtime.device)
    now = instruments.clock(device)
    shape = None if request.arch is None else read_shape(request.arch)
    _check_sharding(request, shape)
    if shape is not None:
        _check_room(shape, request, device)
    probe = instruments.probe(device, now)  # before the model: its buffer is not part of a row's memory
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
    assert loaded is not None  # it includes every rank
    with widest.rank_subset.threads():
        env = environment(device, loaded.model.dtype, loaded.model.backend, widest.rank_subset.size)
    measured_under = conditions(env, loaded.name, loaded.scheme, dtype_name(loaded.model.kv_dtype))
    if older is not None:
        check_comparable(
            older, [(case.name, case.batch_size, n) for case in cases for n in request.sizes], measured_under
        )
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
    rows = tuple(
        bench_row(case, model.rank_subset.size, outcome, loaded)
        for (case, model), outcome in zip(entries, outcomes, strict=True)
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
        rows=rows,
        comparison=None if older is None else compare(older, [row.times for row in rows], measured_under),
    )


def _cases(request: BenchRequest) -> tuple[Case, ...]:
    """The cases; raises UsageError for values out of range."""
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
    """Raise UsageError if the model cannot be sharded over some number of ranks, before it is loaded."""
    if max(request.sizes) == 1:
        return
    outline: Outline
    if shape is None:
        checkpoint = open_checkpoint(resolve(request.model, request.settings).path)
        config, outline = checkpoint.config, partial(outline_of, checkpoint)
    else:
        allocation = request.allocation.allocation(shape.config)
        config, outline = shape.config, partial(allocation.outline, shape.config, RANDOM_DTYPE)
    for n_ranks in request.sizes:
        check_sharded(config, outline, n_ranks)


def _check_room(shape: Shape, request: BenchRequest, device: torch.device) -> None:
    """Raise OutOfMemoryError if the weights exceed a CPU's memory: the system would kill the process."""
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
    """Work of a rank that does not take part; never called."""
    raise AssertionError("this rank does not take part")
