"""MLX: embedding and head are quantized too.

    weight  uint32             [out_features, in_features b / 32]  codes of b bits, the first one lowest
    scales  float16, bfloat16  [out_features, n_groups]
    biases  float16, bfloat16  [out_features, n_groups]

    weight[o, i] = scales * code + biases

In the modes mxfp4, mxfp8 and nvfp4 codes are those of floats, there are no biases, and scales are uint8: of e8m0, in
nvfp4 of e4m3. Source: MLX 0.30 `mlx/ops.cpp`, `affine_dequantize` and `fp_dequantize`.
"""

import torch

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule
from gptfast_cli.core.checkpoints.methods._packing import (
    E2M1,
    FLOATS,
    bit_stream,
    exponents,
    grouped_codes,
    integers,
    n_words,
)
from gptfast_cli.core.schemes import Weight

_SCALES, _BIASES = "scales", "biases"
_BITS = (2, 3, 4, 5, 6, 8)
_NVFP4_GROUP = 16


class Mlx:
    """Groups of 16 to 128; a module may have bits and a mode of its own."""

    tensors: tuple[str, ...] = (WEIGHT, _SCALES, _BIASES)

    def weight(self, module: StoredModule) -> Weight:
        out_features, in_features = module.shape
        bits, of_groups = module.format.bits, (out_features, module.n_groups)
        if bits not in _BITS:
            raise module.unsupported(f"MLX of {bits} bits")
        codes = bit_stream(module.tensor(WEIGHT, (out_features, n_words(in_features, bits)), torch.uint32), bits)
        if module.format.is_float:
            stored = module.tensor(_SCALES, of_groups, torch.uint8)
            is_nvfp4 = module.group_size == _NVFP4_GROUP
            scales = stored.view(torch.float8_e4m3fn) if is_nvfp4 else exponents(stored)
            e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
            return grouped_codes(module, codes, torch.tensor(E2M1) if bits == 4 else e4m3, scales=scales)
        scales, offsets = (module.tensor(own, of_groups, *FLOATS) for own in (_SCALES, _BIASES))
        return grouped_codes(module, codes, integers(0, bits), scales=scales, offsets=offsets)


PLUG = Mlx()
