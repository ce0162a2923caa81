"""GPTQ, as AutoGPTQ and GPTQModel store it.

    qweight  int32    [in_features b / 32, out_features]  codes of b bits, down the columns
    qzeros   int32    [n_groups, out_features b / 32]     zero points of b bits, along the rows
    scales   float16  [n_groups, out_features]
    g_idx    int32    [in_features]                       group of each column; may be missing

    weight[o, i] = scales[g, o] * (code - zero), g = g_idx[i]

In the format `gptq` a stored zero point is one less than what it stands for; in `gptq_v2` it is that itself.
Source: AutoGPTQ 0.8 `nn_modules/qlinear/qlinear_cuda_old.py`, GPTQModel 5 `utils/model.py`.
"""

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.methods import StoredModule, text
from gptfast_cli.core.checkpoints.methods._packing import (
    FLOATS,
    act_order,
    bit_stream,
    grouped_codes,
    integers,
    n_words,
    ordered,
)
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.schemes import Weight

_QWEIGHT, _QZEROS, _SCALES, _G_IDX = "qweight", "qzeros", "scales", "g_idx"
_BITS = (2, 3, 4, 8)
_V1, _V2 = "gptq", "gptq_v2"


class Gptq:
    """2, 3, 4 and 8 bits; groups, or whole rows; columns in any order."""

    tensors: tuple[str, ...] = (_QWEIGHT, _QZEROS, _SCALES, _G_IDX)

    def weight(self, module: StoredModule) -> Weight:
        out_features, in_features = module.shape
        bits, n_groups, declared = module.format.bits, module.n_groups, module.declared.declared
        layout = text(declared, "checkpoint_format", text(declared, "format", _V1))
        if declared.flag("is_marlin_format", default=False):
            layout = "marlin"
        if layout not in (_V1, _V2):
            raise module.unsupported(f"the GPTQ layout {layout}")
        if bits not in _BITS:
            raise module.unsupported(f"GPTQ of {bits} bits")
        if declared.values.get("rotation"):
            raise module.unsupported("GPTQ of rotated weights")
        words = module.tensor(_QWEIGHT, (n_words(in_features, bits), out_features), torch.int32)
        zero_words = module.tensor(_QZEROS, (n_groups, n_words(out_features, bits)), torch.int32)
        scales = module.tensor(_SCALES, (n_groups, out_features), *FLOATS)
        order = act_order(module, _G_IDX)
        codes = ordered(bit_stream(words.t(), bits)[:, :in_features], order)
        zeros = bit_stream(zero_words, bits) if layout == _V2 else _v1_zeros(declared, zero_words, bits)
        zeros = zeros[:, :out_features].t().contiguous()
        return grouped_codes(module, codes, integers(0, bits), scales=scales.t().contiguous(), zeros=zeros, order=order)


def _v1_zeros(declared: Fields, words: Tensor, bits: int) -> Tensor:
    """Zero points [n_groups, out_features or more] that are stored one less.

    GPTQModel subtracts a one in each field from whole words, so that a field of 0 borrows from the next; AutoGPTQ
    counts each field for itself. They differ where a zero point is 0, which symmetric quantization never has.
    """
    if _is_of_gptqmodel(declared) and 8 % bits == 0:
        return bit_stream(words + sum(1 << at for at in range(0, 32, bits)), bits)
    return bit_stream(words, bits) + 1 & (1 << bits) - 1


def _is_of_gptqmodel(declared: Fields) -> bool:
    made_by = declared.section("meta").values.get("quantizer") if "meta" in declared else None
    programs = made_by if isinstance(made_by, list) else [made_by]
    return any(str(program).startswith("gptqmodel") for program in programs)


PLUG = Gptq()
