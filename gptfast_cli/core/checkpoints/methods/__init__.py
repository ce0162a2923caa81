"""Methods: how other programs store the matrix of a quantized module. One file each, by the name that is declared.

Codes, scales and zero points become parts of the grouped scheme as they are: the weight is that of the program which
defines the format, computed in float32 from the stored numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN
from gptfast_cli.core.checkpoints.foreign import WeightPart
from gptfast_cli.core.checkpoints.quantization_config import QuantizationConfig, WeightFormat
from gptfast_cli.core.checkpoints.shard import DTYPES, Shard, TensorInfo
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.schemes import Weight

WEIGHT: Final = "weight"


@dataclass(frozen=True, slots=True)
class StoredModule:
    """The tensors of a module whose matrix is quantized.

    name:     the module's name
    shape:    of its matrix, [out_features, in_features], as config.json makes it
    format:   that is declared for it
    declared: all that is declared
    tensors:  file and name of each tensor, by its own name, such as `qweight`
    is_read:  whether `tensor` reads; else what it returns is on the meta device
    """

    name: str
    shape: tuple[int, int]
    format: WeightFormat
    declared: QuantizationConfig
    tensors: Mapping[str, tuple[Shard, str]]
    is_read: bool = False

    def __contains__(self, own: str) -> bool:
        return own in self.tensors

    @property
    def location(self) -> str:
        """`file: module`, for error messages."""
        files = sorted(shard.path.name for shard, _ in self.tensors.values())
        return f"{files[0]}: {self.name}" if files else self.name

    @property
    def group_size(self) -> int:
        """Elements that share a scale, a whole row if no size is declared."""
        return self.format.group_size or self.shape[1]

    @property
    def n_groups(self) -> int:
        """Groups of a row."""
        return -(-self.shape[1] // self.group_size)

    def dtype(self, own: str) -> torch.dtype:
        """Dtype of a tensor. Raises CorruptError if it is missing."""
        return DTYPES[self._info(own).dtype]

    def stored_shape(self, own: str) -> tuple[int, ...]:
        """Shape of a tensor as it is stored. Raises CorruptError if it is missing."""
        return self._info(own).shape

    def tensor(self, own: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """A tensor, which must have this shape and one of the dtypes. Raises CorruptError with file and tensor."""
        found, dtype = self.stored_shape(own), self.dtype(own)
        if found != shape or dtype not in dtypes:
            wanted = f"{' or '.join(map(_name, dtypes))} {list(shape)}"
            raise self.corrupt(own, f"is {_name(dtype)} {list(found)}, and config.json makes it {wanted}")
        if not self.is_read:
            return torch.empty(shape, dtype=dtype, device="meta")
        shard, tensor = self.tensors[own]
        return shard.tensor(tensor)

    def small(self, own: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """As `tensor`, and always read: a tensor that decides which parts the weight has, or that all rows share."""
        return replace(self, is_read=True).tensor(own, shape, *dtypes)

    def scalar(self, own: str, *dtypes: torch.dtype) -> Tensor:
        """The one element of a tensor, [1], always read."""
        shape = self.stored_shape(own)
        return self.small(own, shape if math.prod(shape) == 1 else (1,), *dtypes).reshape(1)

    def corrupt(self, own: str, why: str) -> CorruptError:
        """The error that a tensor is damaged or missing."""
        if own in self.tensors:
            shard, tensor = self.tensors[own]
            return CorruptError(f"{shard.path.name}: {tensor}: {why}", FETCH_AGAIN)
        return CorruptError(f"{self.location}.{own}: {why}", FETCH_AGAIN)

    def unsupported(self, what: str) -> UsageError:
        """The error that a variant of a format is not read."""
        return UsageError(f"{self.location}: {what} is not supported.", OTHER_FORMATS)

    def _info(self, own: str) -> TensorInfo:
        if own not in self.tensors:
            raise self.corrupt(own, f"missing, but required by {self.declared.declared.where}")
        shard, tensor = self.tensors[own]
        return shard.tensors[tensor]


class Method(Protocol):
    """One method of quantizing, as its own programs store it."""

    tensors: tuple[str, ...]
    """Own names of all tensors that it gives a module, but for the bias and scales of activations."""

    def weight(self, module: StoredModule) -> Weight:
        """The module's matrix.

        Raises CorruptError for a tensor that is missing or does not fit, UsageError for a variant that is not read.
        """
        ...


methods: Plugs[Method] = Plugs(__name__)

OTHER_FORMATS: Final = (
    "gptfast reads GPTQ, AWQ, compressed-tensors, FP8, ModelOpt, bitsandbytes, MXFP4, MLX and GGUF: take the model "
    "in one of these, or the original and quantize that: gptfast quantize"
)


def method_of(declared: QuantizationConfig) -> Method:
    """The method of a declaration. Raises UsageError if gptfast lacks it."""
    name = declared.method.replace("-", "_")
    if name not in methods:
        raise UsageError(
            f"{declared.declared.where}: weights in the format {declared.method} are not supported.", OTHER_FORMATS
        )
    return methods[name]


def quantized_modules(
    declared: QuantizationConfig,
    matrices: Mapping[str, tuple[int, int]],
    stored: Mapping[str, str],
    shards: Mapping[str, Shard],
) -> dict[str, StoredModule]:
    """The quantized ones of modules that have a matrix, by name.

    matrices: shape of each module's matrix
    stored:   name of each tensor in the files
    shards:   file of each tensor, by its name there

    The tensors tell which modules they are: some programs declare that in other names than those of the files. What
    is declared tells how they are stored, and whether a tensor is missing.
    """
    own_names = method_of(declared).tensors
    found = {}
    for name, shape in matrices.items():
        at = {own: stored[tensor] for own in own_names if (tensor := f"{name}.{own}") in stored}
        weight = stored.get(f"{name}.{WEIGHT}")
        in_file = weight.removesuffix(f".{WEIGHT}") if weight else _prefix(at, name)
        is_plain = weight is not None and shards[weight].tensors[weight].dtype in _PLAIN
        form = declared.format_of(in_file)
        if set(at) - {WEIGHT} or (weight is not None and not is_plain) or (weight is None and form is not None):
            form = form or declared.format
            if form is None:
                raise UsageError(f"{declared.declared.where}: does not say how {name} is stored.", OTHER_FORMATS)
            tensors = {own: (shards[tensor], tensor) for own, tensor in at.items()}
            found[name] = StoredModule(name, shape, form, declared, tensors)
    return found


def _prefix(tensors: Mapping[str, str], name: str) -> str:
    """A module's name in the files, by its tensors there; `name` if it has none."""
    return next((tensor.removesuffix(f".{own}") for own, tensor in tensors.items()), name)


_PLAIN: Final = ("F64", "F32", "F16", "BF16")


def weight_part(module: StoredModule) -> WeightPart:
    """The matrix of a module, which is unpacked when it is read; errors as of `Method.weight`."""
    method = method_of(module.declared)
    return WeightPart(module.location, method.weight(module), lambda: method.weight(replace(module, is_read=True)))


UNUSED: Final = {
    **dict.fromkeys(("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub"), "activations"),
    **dict.fromkeys(("activation_scale", "output_scale", "output_zero_point"), "activations"),
    **dict.fromkeys(("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "kv_cache_scale"), "the KV cache"),
    **dict.fromkeys(("k_zero_point", "v_zero_point", "k_bias_scale", "v_bias_scale"), "the KV cache"),
}
"""Tensors of what is not quantized by stored scales here, by their last name."""


def text(fields: Fields, key: str, default: str) -> str:
    """A declared word in lower case."""
    return fields.text(key, default).lower()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
