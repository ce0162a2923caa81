"""How much memory a model takes in each form that it can be run in, from its shape alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import AllocationOptions

_BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the weights by form, `bfloat16` and the schemes; and of keys and values for each token of context."""

    weight_bytes: Mapping[str, int]
    kv_bytes_per_token: int


def memory_need(config: ModelConfig, schemes: Iterable[str] = ("int8", "int4")) -> MemoryNeed:
    """What a model of this shape needs, in bfloat16 and quantised as `gptfast quantize --mode` does it."""
    forms = {"bfloat16": PLAIN, **{scheme: scheme for scheme in schemes}}
    weight_bytes = {form: _weight_bytes(config, mode) for form, mode in forms.items()}
    return MemoryNeed(weight_bytes, config.kv_bytes_per_token(_BFLOAT16_BYTES))


def _weight_bytes(config: ModelConfig, mode: str) -> int:
    storages = AllocationOptions(mode).allocation(config).of(config)
    return sum(storages[name].n_bytes(shape, _BFLOAT16_BYTES) for name, shape in weight_shapes(config).items())
