"""`bench`: how fast a model feeds prompts and generates, at each batch size, length and depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from gptfast_cli.core.decode.building import Placing
from gptfast_cli.core.decode.compiled import Compiling
from gptfast_cli.core.decode.ranges import check_at_least, check_seed
from gptfast_cli.core.decode.shapes import Shape, read_shape
from gptfast_cli.core.decode.subject import RANDOM_DTYPE, Subject, loaded_subject, random_subject
from gptfast_cli.core.decode.synthetic import planned_bytes
from gptfast_cli.core.device import dtype_name, pick_device, pick_dtype
from gptfast_cli.core.errors import OutOfMemoryError, UsageError
from gptfast_cli.core.events import Job
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.measure.bandwidth import Bandwidth, Probe
from gptfast_cli.core.measure.cases import Case, CaseOptions
from gptfast_cli.core.measure.clock import Clock, device_clock
from gptfast_cli.core.measure.environment import environment
from gptfast_cli.core.measure.machine import available_memory_bytes
from gptfast_cli.core.measure.memory import PeakMemory
from gptfast_cli.core.measure.record import Bench, bench_row, memory_bandwidth
from gptfast_cli.core.measure.repetitions import measured
from gptfast_cli.core.measure.workload import Workload
from gptfast_cli.core.quant.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure, and how often.

    arch:       a SHAPE to measure with random weights, stored as `allocation` says, in place of `model`
    n_rounds:   repetitions of each case that count
    """

    settings: Settings
    model: str | None = None
    arch: str | None = None
    allocation: AllocationOptions = AllocationOptions("plain")
    placing: Placing = Placing()
    compiling: Compiling = Compiling()
    cases: CaseOptions = CaseOptions()
    n_rounds: int = 5
    seed: int = 0


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


def run(request: BenchRequest, instruments: Instruments = Instruments()) -> Job[Bench]:
    """Measure; an interrupt once rows are being timed ends it early, with all that is there.

    Raises UsageError for values out of range, what loading and compiling raise, and OutOfMemoryError for a shape that
    has no room. A row that fails has its error in the record, and the others go on.
    """
    cases = _cases(request)
    device = pick_device(request.placing.device)
    now = instruments.clock(device)
    shape = None if request.arch is None else read_shape(request.arch)
    if shape is not None:
        _check_room(shape, request, device)
    probe = instruments.probe(device, now)  # before the model: its memory is apart from what rows are charged with
    subject = yield from _subject(request, shape, instruments.backend)
    workload = Workload(subject.model, request.seed)
    compile_s = yield from workload.compile(cases, request.compiling, request.settings)
    around = environment(device, subject.model.dtype)
    bandwidths: list[float] = []

    def read_bandwidth() -> Bandwidth:
        bandwidth = probe.measure()
        bandwidths.append(bandwidth.bytes_per_second)
        return bandwidth

    outcomes = yield from measured(
        [workload.row(case) for case in cases],
        request.n_rounds,
        now=now,
        probe=read_bandwidth,
        memory=PeakMemory(device, probe.n_bytes),
    )
    return Bench(
        environment=around,
        model=subject.name,
        scheme=subject.scheme,
        head_scheme=subject.head_scheme,
        kv_dtype=dtype_name(subject.model.kv_dtype),
        n_params=subject.n_params,
        n_bytes=subject.model.weight_bytes,
        seed=request.seed,
        load_s=subject.seconds,
        compile_s=compile_s,
        bandwidth=memory_bandwidth(bandwidths),
        n_rounds=request.n_rounds,
        rows=tuple(bench_row(case, outcome, subject) for case, outcome in zip(cases, outcomes, strict=True)),
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


def _check_room(shape: Shape, request: BenchRequest, device: torch.device) -> None:
    """Raise OutOfMemoryError where a CPU's memory cannot hold the weights: the system would end the process instead."""
    dtype = pick_dtype(request.placing.dtype, RANDOM_DTYPE, device)
    needed = planned_bytes(shape.config, request.allocation.allocation(shape.config), dtype)
    free = available_memory_bytes() if device.type == "cpu" else None
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"The weights of {shape.name} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free.",
            "Take a smaller shape, or fewer bits: --mode int4",
        )


def _subject(request: BenchRequest, shape: Shape | None, backend: Backend | None) -> Job[Subject]:
    if shape is None:
        return (yield from loaded_subject(request.model, request.settings, request.placing, backend))
    making = random_subject(
        shape,
        request.allocation,
        request.placing,
        seed=request.seed,
        settings=request.settings,
        torch_backend=backend,
    )
    return (yield from making)
