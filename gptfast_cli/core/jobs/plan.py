"""`bench --plan`: memory and decode speed of a model on a machine, computed without loading the model."""

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gptfast_cli.core.bench.plan import (
    COMPILED,
    LINK_LATENCY,
    NATIVE,
    Efficiency,
    Hardware,
    ModelOutline,
    PlanRow,
    plan_rows,
    portion,
)
from gptfast_cli.core.bench.workload import CaseOptions
from gptfast_cli.core.checkpoints.checkpoint import outline_of
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import Resolved, resolve
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name, pick_device, pick_dtype, pick_kv_dtype, set_threads
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import RANDOM_DTYPE
from gptfast_cli.core.engine.options import check_at_least
from gptfast_cli.core.engine.shapes import KNOWN_SHAPES, is_shape, read_shape
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.jobs.bench import Instruments
from gptfast_cli.core.memory import available_memory_bytes
from gptfast_cli.core.quantities import count
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.sizes import declared_outline
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class HardwareOptions:
    """Options that describe a machine: bandwidths in GB/s, memory in GB (1e9 bytes), latency in microseconds.

    Without bandwidth and memory it is this machine, with its free memory and its measured bandwidth.
    """

    bandwidth: float | None = None
    memory: float | None = None
    link_bandwidth: float | None = None
    link_latency: float | None = None

    @property
    def is_described(self) -> bool:
        """Whether another machine than this one is described."""
        return self.bandwidth is not None or self.memory is not None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan.

    model:      MODEL or SHAPE
    allocation: quantization to plan for; None keeps the stored schemes, and plain weights for a shape
    tps:        numbers of devices, each with every batch size and context of `cases`
    efficiency: share of the bandwidth that decoding reaches; None estimates it by scheme and layer, see `Efficiency`
    """

    settings: Settings
    model: str
    allocation: AllocationOptions | None = None
    tps: tuple[int, ...] = (1,)
    cases: CaseOptions = CaseOptions()
    runtime: RuntimeConfig = RuntimeConfig()
    hardware: HardwareOptions = HardwareOptions()
    efficiency: float | None = None


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The plan and its assumptions."""

    model: str
    scheme: str
    head_scheme: str
    n_params: int
    dtype: str
    kv_dtype: str
    hardware: Hardware
    efficiency: Efficiency
    rows: tuple[PlanRow, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    """A model to plan for, with its name and scheme."""

    name: str
    scheme: str
    outline: ModelOutline


def run(request: PlanRequest, instruments: Instruments = Instruments()) -> Job[BenchPlan]:
    """Compute a plan; only this machine's bandwidth is measured, where none is described.

    Raises UsageError for values out of range and for a model that cannot be sharded, before anything is measured, and
    what finding a model or reading a shape raises.
    """
    _check_ranges(request)
    set_threads(request.runtime.threads)
    here = None if request.hardware.is_described else pick_device(request.runtime.device)
    model = _model(request, here)
    contexts = _contexts(request.cases, model)
    portions = [portion(model.outline, tp) for tp in request.tps]
    weights, n_params = model.outline.weights, model.outline.config.n_params
    yield Note(f"Model: {model.name}, {count(n_params)} parameters, {model.scheme}; weights are not loaded")
    hardware = _described(request.hardware) if here is None else _this_machine(request.hardware, here, instruments)
    efficiency = _efficiency(request.efficiency, here)
    return BenchPlan(
        model=model.name,
        scheme=model.scheme,
        head_scheme=weights.get("head", weights["embedding"]).scheme,
        n_params=n_params,
        dtype=dtype_name(model.outline.dtype),
        kv_dtype=dtype_name(model.outline.kv_dtype),
        hardware=hardware,
        efficiency=efficiency,
        rows=plan_rows(portions, request.cases.batch_sizes, contexts, hardware, efficiency),
    )


def _check_ranges(request: PlanRequest) -> None:
    cases, hardware = request.cases, request.hardware
    check_at_least(1, {"--tp": min(request.tps, default=0), "--batch-size": min(cases.batch_sizes, default=0)})
    check_at_least(0, {"--depth": min(cases.depths, default=0)})
    lengths = {"--prompt-len": cases.prompt_lens, "--gen-len": cases.gen_lens}
    check_at_least(1, {option: min(values) for option, values in lengths.items() if values})
    _check_positive(
        {
            "--device-bandwidth": hardware.bandwidth,
            "--device-memory": hardware.memory,
            "--link-bandwidth": hardware.link_bandwidth,
            "--efficiency": request.efficiency,
        }
    )
    if hardware.link_latency is not None and not 0 <= hardware.link_latency < math.inf:
        raise UsageError(f"--link-latency must be 0 or more microseconds, not {hardware.link_latency:g}.")
    if request.efficiency is not None and request.efficiency > 1:
        raise UsageError(f"--efficiency is a share from 0 to 1, not {request.efficiency:g}.", "For example: 0.8")


def _check_positive(values: Mapping[str, float | None]) -> None:
    for option, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{option} must be above 0, not {value:g}.")


def _model(request: PlanRequest, here: torch.device | None) -> _Named:
    """The model without its weights, in the dtypes of this device; `here` None is another machine."""

    def outline(config: ModelConfig, weights: Mapping[str, Weight], stored_in: torch.dtype) -> ModelOutline:
        # another machine may support other dtypes than this one
        dtype = pick_dtype(request.runtime.dtype, stored_in, here or torch.device("meta"))
        return ModelOutline(config, weights, dtype, pick_kv_dtype(request.runtime.kv_dtype, dtype))

    if is_shape(request.model):
        shape = read_shape(request.model)
        if shape.quantization is not None:
            _check_plain(shape.name, str(shape.quantization), request)
            weights = declared_outline(shape.config, shape.quantization, RANDOM_DTYPE)
            return _Named(shape.name, str(shape.quantization), outline(shape.config, weights, RANDOM_DTYPE))
        allocation = (request.allocation or AllocationOptions(PLAIN)).allocation(shape.config)
        weights = allocation.outline(shape.config, RANDOM_DTYPE)
        return _Named(shape.name, str(allocation), outline(shape.config, weights, RANDOM_DTYPE))
    found = _found(request)
    checkpoint = open_checkpoint(found.path)
    scheme, weights = checkpoint.scheme, outline_of(checkpoint)
    _check_plain(found.name, checkpoint.stored_as, request)
    if request.allocation is not None:
        allocation = request.allocation.allocation(checkpoint.config)
        scheme, weights = str(allocation), allocation.outline(checkpoint.config, checkpoint.dtype)
    return _Named(found.name, scheme, outline(checkpoint.config, weights, checkpoint.dtype))


def _found(request: PlanRequest) -> Resolved:
    try:
        return resolve(request.model, request.settings)
    except NotFoundError as error:
        nearest = difflib.get_close_matches(request.model, KNOWN_SHAPES)
        if not nearest:
            raise
        raise NotFoundError(error.message, f"Did you mean the shape {' or '.join(nearest)}?") from error


def _check_plain(name: str, stored_as: str, request: PlanRequest) -> None:
    if stored_as != PLAIN and request.allocation is not None:
        raise UsageError(f"{name}: is already quantized ({stored_as}), and has its own schemes.", "Leave out --mode.")


def _contexts(cases: CaseOptions, model: _Named) -> tuple[int, ...]:
    """Contexts to plan for: depth + prompt + generated tokens; the default one is cut to the model's maximum."""
    lengths = (cases.depths or (0,), cases.prompt_lens or (0,), cases.gen_lens or (0,))
    contexts = sorted({sum(each) for each in itertools.product(*lengths)})
    longest = model.outline.config.max_context
    usual = CaseOptions()
    if (usual.depths, usual.prompt_lens, usual.gen_lens) == (cases.depths, cases.prompt_lens, cases.gen_lens):
        return (min(contexts[0], longest),)
    if not contexts[0]:
        raise UsageError(
            "The context has no tokens: there is nothing to plan.", "Give --prompt-len or --gen-len a length."
        )
    if contexts[-1] > longest:
        raise UsageError(
            f"A context of {contexts[-1]} tokens exceeds the maximum of {model.name}, {longest}.",
            "Take a smaller --depth, --prompt-len or --gen-len.",
        )
    return tuple(contexts)


def _described(options: HardwareOptions) -> Hardware:
    return Hardware(
        bandwidth=options.bandwidth and options.bandwidth * 1e9,
        memory_bytes=None if options.memory is None else round(options.memory * 1e9),
        link_bandwidth=options.link_bandwidth and options.link_bandwidth * 1e9,
        link_latency=LINK_LATENCY if options.link_latency is None else options.link_latency / 1e6,
    )


def _this_machine(options: HardwareOptions, device: torch.device, instruments: Instruments) -> Hardware:
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    reads = instruments.probe(device, instruments.clock(device)).measure()
    return replace(_described(options), bandwidth=reads.bytes_per_second, memory_bytes=memory, is_measured=True)


def _efficiency(efficiency: float | None, here: torch.device | None) -> Efficiency:
    if efficiency is not None:
        return Efficiency({PLAIN: efficiency})
    return NATIVE if here is not None and here.type == "cpu" else COMPILED
