"""FP8 of transformers, vLLM and FBGEMM: 8-bit floats with scales of blocks, of rows, or of the matrix.

    weight            float8_e4m3fn  [out_features, in_features]
    weight_scale_inv  float32 ...    [ceil(out_features / 128), ceil(in_features / 128)], or as `weight_block_size` says
    weight_scale      float32 ...    [out_features, 1], [out_features], [1] or []

    weight[o, i] = float(weight) * scale: the scale is what the float is multiplied with, in spite of the name

Blocks at the right and lower border may be smaller. Source: transformers 5.24 `integrations/finegrained_fp8.py`,
vLLM 0.11 `layers/quantization/fp8.py`, DeepSeek-V3 `inference/kernel.py`.
"""

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule
from gptfast_cli.core.checkpoints.methods._packing import float8_weight
from gptfast_cli.core.schemes import Weight

_BLOCKS, _SCALE = "weight_scale_inv", "weight_scale"


class Fp8:
    """Activations are quantized by other programs as they come, and left as they are here."""

    tensors: tuple[str, ...] = (WEIGHT, _BLOCKS, _SCALE)

    def weight(self, module: StoredModule) -> Weight:
        return float8_weight(module, _SCALE if _SCALE in module else _BLOCKS)


PLUG = Fp8()
