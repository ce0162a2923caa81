"""What a measurement is of: a model ready to run, read from a checkpoint or made up from a shape."""

import math
from dataclasses import dataclass
from functools import partial

import torch

from gptfast_cli.core.decode.building import Parts, Placing, build
from gptfast_cli.core.decode.loading import load
from gptfast_cli.core.decode.shapes import Shape
from gptfast_cli.core.decode.synthetic import RandomWeights, planned_bytes
from gptfast_cli.core.device import computing_name, pick_device, pick_dtype, pick_kv_dtype, set_threads
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import AllocationOptions
from gptfast_cli.core.quantities import count
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

RANDOM_DTYPE = torch.bfloat16
"""What a shape counts as stored in, where nobody says in what to compute: nearly every model is."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in memory; `scheme` is that of most parameters, `seconds` what loading or making it took."""

    name: str
    scheme: str
    head_scheme: str
    model: Decoder
    seconds: float

    @property
    def n_params(self) -> int:
        """Parameters of the model; a tied head counts once."""
        return sum(math.prod(shape) for shape in weight_shapes(self.model.config).values())


def loaded_subject(
    name: str | None, settings: Settings, placing: Placing, torch_backend: Backend | None
) -> Job[Subject]:
    """A checkpoint, found and loaded as `load` does it, with its errors."""
    loaded = yield from load(name, settings, placing, torch_backend)
    checkpoint = loaded.checkpoint
    head = checkpoint.weight("embedding" if loaded.config.tied_embeddings else "head")
    return Subject(loaded.name, checkpoint.scheme, head.scheme, loaded.model, loaded.seconds)


def random_subject(
    shape: Shape,
    options: AllocationOptions,
    placing: Placing,
    *,
    seed: int,
    settings: Settings,
    torch_backend: Backend | None,
) -> Job[Subject]:
    """A model of a shape with random weights; raises UsageError for schemes, devices and dtypes that are none."""
    set_threads(placing.threads)
    device = pick_device(placing.device)
    dtype = pick_dtype(placing.dtype, RANDOM_DTYPE, device)
    allocation = options.allocation(shape.config)
    n_params = sum(math.prod(sizes) for sizes in weight_shapes(shape.config).values())
    yield Note(
        f"Model: {shape.name} (random weights), {count(n_params)} parameters, "
        f"{allocation} {computing_name(dtype, pick_kv_dtype(placing.kv_dtype, dtype))} on {device}"
    )
    weights = RandomWeights(shape.config, allocation, device=device, dtype=dtype, seed=seed)
    storages = partial(allocation.of, shape.config)
    parts = Parts(shape.config, weights.read, storages, planned_bytes(shape.config, allocation, dtype), device, dtype)
    watch = Stopwatch(device)
    model = yield from build(parts, placing, settings=settings, watch=watch, torch_backend=torch_backend)
    return Subject(shape.name, str(allocation), allocation.head.scheme, model, watch.seconds)
