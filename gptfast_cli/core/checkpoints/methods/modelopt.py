"""NVIDIA ModelOpt, as its unified Hugging Face export stores it; also by hf_quant_config.json alone.

    FP8                          weight  float8_e4m3fn [out_features, in_features], weight_scale float32 []
    FP8_PER_CHANNEL_PER_TOKEN    the same, weight_scale [out_features]
    FP8_PB_WO                    the same, weight_scale [out_features / 128, 1, in_features / 128, 1]
    MXFP8                        the same, weight_scale uint8 [out_features, in_features / 32], e8m0
    NVFP4                        weight  uint8 [out_features, in_features / 2], weight_scale e4m3 [.., n_groups],
                                 weight_scale_2 float32 []: the scale of a group is their product
    MXFP4                        the same, weight_scale uint8, e8m0, no weight_scale_2
    W8A16, INT8_SQ               weight  int8 [out_features, in_features], weight_scale [out_features]

A `pre_quant_scale`, by which the input is multiplied (AWQ, SmoothQuant), is not read: it is no part of a matrix.
Source: Model-Optimizer 0.40 `torch/export/quant_utils.py`, `torch/quantization/qtensor/`.
"""

import torch

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule
from gptfast_cli.core.checkpoints.methods._packing import (
    EXPONENTS,
    FLOAT8,
    exponents,
    float4_weight,
    float8_weight,
    int8_weight,
)
from gptfast_cli.core.schemes import Weight

_SCALE, _SCALE_2, _INPUT_FACTOR = "weight_scale", "weight_scale_2", "pre_quant_scale"
_FP4_BITS = 4


class ModelOpt:
    """The dtype of what is stored tells the format of a module."""

    tensors: tuple[str, ...] = (WEIGHT, _SCALE, _SCALE_2, _INPUT_FACTOR)

    def weight(self, module: StoredModule) -> Weight:
        if _INPUT_FACTOR in module:
            raise module.unsupported(f"{_INPUT_FACTOR} of ModelOpt")
        dtype = module.dtype(WEIGHT)
        if dtype in FLOAT8:
            return float8_weight(module, _SCALE)
        if dtype == torch.int8:
            return int8_weight(module, _SCALE)
        if not (module.format.is_float and module.format.bits == _FP4_BITS):
            raise module.unsupported(f"the format {module.declared.declared.values.get('quant_algo')} of ModelOpt")
        of_groups = (module.shape[0], module.n_groups)
        if _SCALE_2 not in module and _SCALE in module and module.dtype(_SCALE) in EXPONENTS:
            return float4_weight(module, WEIGHT, exponents(module.tensor(_SCALE, of_groups, *EXPONENTS)))
        scales = module.tensor(_SCALE, of_groups, torch.float8_e4m3fn)
        return float4_weight(module, WEIGHT, scales, module.scalar(_SCALE_2, torch.float32))


PLUG = ModelOpt()
