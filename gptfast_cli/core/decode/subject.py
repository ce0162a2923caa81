"""What a measurement is of: a model ready to run, read from a checkpoint or made up from a shape."""

import math
from dataclasses import dataclass

import torch

from gptfast_cli.core.decode.loading import Placing, load
from gptfast_cli.core.decode.shapes import Shape
from gptfast_cli.core.decode.synthetic import random_weights
from gptfast_cli.core.device import dtype_name, pick_device, pick_dtype, set_threads
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.model.transformer import Transformer
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

RANDOM_DTYPE = torch.bfloat16
"""What a shape counts as stored in, where nobody says in what to compute: nearly every model is."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in memory; `scheme` is that of most parameters, `seconds` what loading or making it took."""

    name: str
    scheme: str
    model: Transformer
    seconds: float

    @property
    def n_params(self) -> int:
        """Parameters of the model; a tied head counts once."""
        return sum(math.prod(shape) for shape in weight_shapes(self.model.config).values())


def loaded_subject(name: str | None, settings: Settings, placing: Placing, backend: Backend) -> Job[Subject]:
    """A checkpoint, found and loaded as `load` does it, with its errors."""
    loaded = yield from load(name, settings, placing)
    model = Transformer(loaded.config, loaded.model.weights, backend, loaded.model.dtype)
    return Subject(loaded.name, loaded.checkpoint.scheme, model, loaded.seconds)


def random_subject(
    shape: Shape, options: AllocationOptions, placing: Placing, *, seed: int, backend: Backend
) -> Job[Subject]:
    """A model of a shape with random weights; raises UsageError for schemes, devices and dtypes that are none."""
    set_threads(placing.threads)
    device = pick_device(placing.device)
    dtype = pick_dtype(placing.dtype, RANDOM_DTYPE, device)
    allocation = options.allocation(shape.config)
    n_params = sum(math.prod(sizes) for sizes in weight_shapes(shape.config).values())
    yield Note(
        f"Model: {shape.name} (random weights), {n_params / 1e6:,.1f} M parameters, "
        f"{allocation} {dtype_name(dtype)} on {device}"
    )
    making = random_weights(shape.config, allocation, device=device, dtype=dtype, seed=seed)
    watch = Stopwatch(device)
    while True:  # the clock stands still while an event is shown
        try:
            with watch:
                event = next(making)
        except StopIteration as made:
            model = Transformer(shape.config, made.value, backend, dtype)
            return Subject(shape.name, str(allocation), model, watch.seconds)
        yield event
