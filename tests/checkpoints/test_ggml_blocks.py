"""ggml's blocks as grouped weights: every element is, to the bit, what the `gguf` package makes of it."""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.ggml_blocks import ggml_weight
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.gguf import TENSOR_TYPES, TensorType
from gptfast_cli.core.schemes import schemes

BLOCK_TYPES = [
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
]
PLAIN_TYPES = ["F32", "F16", "BF16"]
N_ROWS = 24
FLOATS = {  # where the floats of a block are, if not at its beginning alone
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "MXFP4": (),
}


def kind_of(name: str) -> TensorType:
    return next(kind for kind in TENSOR_TYPES.values() if kind.name == name)


def random_rows(name: str, *, n_rows: int = N_ROWS, n_blocks: int = 3) -> Tensor:
    """Random bytes, of which no scale is infinite or NaN."""
    kind = kind_of(name)
    raw = np.random.default_rng(0).integers(0, 256, (n_rows, n_blocks, kind.block_bytes), dtype=np.uint8)
    for first in FLOATS.get(name, (0,)):
        raw[..., first + (3 if name == "F32" else 1)] &= 0xBF  # below 2
    if name == "MXFP4":
        raw[..., 0] = raw[..., 0] % 255  # 255 is NaN by the standard of the format
    return torch.from_numpy(raw.reshape(n_rows, -1))


def dequantized(raw: Tensor, name: str) -> Tensor:
    with np.errstate(over="ignore"):  # ggml's large blocks of MXFP4 exceed float32, as ours do
        return torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[name]))


def test_the_types_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block_size, kind.block_bytes) for number, kind in TENSOR_TYPES.items()}
    theirs[9] = ("Q8_1", 32, 36)  # 40 in the package; a type of ggml's memory, which no file has
    assert ours == {number: theirs[number] for number in ours}


@pytest.mark.parametrize("name", [*BLOCK_TYPES, *PLAIN_TYPES])
def test_random_blocks_are_read_to_the_bit(name: str) -> None:
    raw = random_rows(name, n_blocks=3 if name in BLOCK_TYPES else 50)
    in_features = raw.shape[1] // kind_of(name).block_bytes * kind_of(name).block_size
    weight = ggml_weight(kind_of(name), raw, in_features)
    assert schemes[weight.scheme].is_whole(weight)
    ours = schemes[weight.scheme].dense(weight, torch.float32)
    assert torch.equal(ours.view(torch.int32), dequantized(raw, name).view(torch.int32))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "BF16"])
def test_blocks_that_were_quantized_are_near_the_original(name: str) -> None:
    original = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    raw = torch.from_numpy(gguf.quants.quantize(original.numpy(), gguf.GGMLQuantizationType[name]))
    weight = ggml_weight(kind_of(name), raw, 96)
    ours = schemes[weight.scheme].dense(weight, torch.float32)
    assert torch.equal(ours, dequantized(raw, name))
    assert (ours - original).abs().max() < {"Q8_0": 0.02, "BF16": 0.02, "MXFP4": 1.0}.get(name, 0.4)


@pytest.mark.parametrize("name", [*BLOCK_TYPES, *PLAIN_TYPES])
def test_rows_of_a_file_are_the_rows_of_the_weight(name: str) -> None:
    raw = random_rows(name, n_blocks=2)
    in_features = 2 * kind_of(name).block_size
    whole = ggml_weight(kind_of(name), raw, in_features)
    some = ggml_weight(kind_of(name), raw[5:11], in_features)
    dense = schemes[whole.scheme].dense(whole, torch.float32)[5:11]
    assert torch.equal(schemes[some.scheme].dense(some, torch.float32).view(torch.int32), dense.view(torch.int32))


@pytest.mark.parametrize("name", [*BLOCK_TYPES, *PLAIN_TYPES])
def test_an_outline_has_the_parts_of_the_weight(name: str) -> None:
    raw, in_features = random_rows(name), 3 * kind_of(name).block_size
    weight, outline = (ggml_weight(kind_of(name), rows, in_features) for rows in (raw, raw.to("meta")))
    assert outline.shape == weight.shape
    assert {name: (part.dtype, part.shape) for name, part in outline.parts.items()} == {
        name: (part.dtype, part.shape) for name, part in weight.parts.items()
    }


def test_a_type_that_is_not_read_is_named_and_not_called_damaged() -> None:
    with pytest.raises(UsageError, match="type IQ2_XXS is not supported") as refused:
        ggml_weight(kind_of("IQ2_XXS"), torch.zeros(2, 66, dtype=torch.uint8), 256)
    assert "Q4_K" in refused.value.hint
