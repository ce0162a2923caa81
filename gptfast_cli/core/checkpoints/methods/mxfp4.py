"""MXFP4 as gpt-oss stores it (OCP Microscaling specification 1.0).

    weight_blocks  uint8  [out_features, in_features / 32, 16]  two e2m1 floats a byte, the first one lowest
    weight_scales  uint8  [out_features, in_features / 32]      e8m0: 2^(n - 127)

gpt-oss stores its experts so, and gptfast has no mixture of experts: what is read here are matrices of dense layers.
"""

import torch

from gptfast_cli.core.checkpoints.methods import StoredModule
from gptfast_cli.core.checkpoints.methods._packing import E2M1, EXPONENTS, bit_stream, exponents, grouped_codes
from gptfast_cli.core.schemes import Weight

_BLOCKS, _SCALES = "weight_blocks", "weight_scales"
_GROUP = 32


class Mxfp4:
    """Blocks of 32 elements."""

    tensors: tuple[str, ...] = (_BLOCKS, _SCALES)

    def weight(self, module: StoredModule) -> Weight:
        shape = (module.shape[0], -(-module.shape[1] // _GROUP))
        codes = bit_stream(module.tensor(_BLOCKS, (*shape, _GROUP // 2), torch.uint8).flatten(1), 4)
        scales = exponents(module.tensor(_SCALES, shape, *EXPONENTS))
        return grouped_codes(module, codes, torch.tensor(E2M1), group_size=_GROUP, scales=scales)


PLUG = Mxfp4()
