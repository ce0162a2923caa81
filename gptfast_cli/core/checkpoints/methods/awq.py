"""AWQ of 4 bits, as AutoAWQ stores it, in the layouts of its three kernels.

    gemm       qweight  int32    [in_features, out_features / 8]
               qzeros   int32    [n_groups, out_features / 8]
               scales   float16  [n_groups, out_features]
               nibble n of a word belongs to row _ROWS[n] of eight
    gemv       qweight  int32    [out_features, in_features / 8]
               qzeros   int32    [out_features, at least n_groups / 8]
               scales   float16  [out_features, at least n_groups]
               nibbles in the order of the elements
    gemv_fast  qweight  int16    [out_features / 4, in_features]
               qzeros   float16  [at least n_groups, out_features], which is -zero * scale
               scales   float16  [at least n_groups, out_features]
               tiles of 4 rows and 64 columns, see `_fast_codes`

    weight[o, i] = scales * (code - zero), or scales * code + qzeros

Source: AutoAWQ 0.2 `modules/linear/gemm.py`, `gemv.py`, `gemv_fast.py`.
"""

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.methods import StoredModule, text
from gptfast_cli.core.checkpoints.methods._packing import FLOATS, bit_stream, grouped_codes, integers
from gptfast_cli.core.schemes import Weight

_QWEIGHT, _QZEROS, _SCALES = "qweight", "qzeros", "scales"
_BITS = 4
_VALUES = integers(0, _BITS)
_ROWS = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
_NIBBLES = _ROWS.argsort()


class Awq:
    """The declared `version` names the layout."""

    tensors: tuple[str, ...] = (_QWEIGHT, _QZEROS, _SCALES)

    def weight(self, module: StoredModule) -> Weight:
        declared = module.declared.declared
        version = text(declared, "version", "gemm")
        layouts = {"gemm": _gemm, "gemv": _gemv, "gemv_fast": _gemv_fast}
        if text(declared, "backend", "autoawq") == "llm-awq":
            version = "llm-awq"
        if version not in layouts:
            raise module.unsupported(f"the AWQ layout {version}")
        if module.format.bits != _BITS:
            raise module.unsupported(f"AWQ of {module.format.bits} bits")
        return layouts[version](module)


def _gemm(module: StoredModule) -> Weight:
    out_features, in_features = module.shape
    n_groups, n_words = module.n_groups, -(-out_features // 8)
    words = module.tensor(_QWEIGHT, (in_features, n_words), torch.int32)
    zero_words = module.tensor(_QZEROS, (n_groups, n_words), torch.int32)
    scales = module.tensor(_SCALES, (n_groups, out_features), *FLOATS).t().contiguous()
    codes, zeros = (_by_rows(packed)[:out_features] for packed in (words, zero_words))
    return grouped_codes(module, codes, _VALUES, scales=scales, zeros=zeros.contiguous())


def _by_rows(words: Tensor) -> Tensor:
    """Words [n, out_features / 8] as codes [out_features, n]."""
    nibbles = torch.unflatten(bit_stream(words, _BITS), -1, (-1, 8))
    return nibbles[..., _NIBBLES.to(words.device)].flatten(-2).t()


def _gemv(module: StoredModule) -> Weight:
    out_features, in_features = module.shape
    words = module.tensor(_QWEIGHT, (out_features, -(-in_features // 8)), torch.int32)
    width = _padded_groups(module) // 8
    zero_words = module.tensor(_QZEROS, (out_features, width), torch.int32)
    scales = module.tensor(_SCALES, (out_features, 8 * width), *FLOATS)
    of_groups = slice(0, module.n_groups)
    return grouped_codes(
        module,
        bit_stream(words, _BITS),
        _VALUES,
        scales=scales[:, of_groups].contiguous(),
        zeros=bit_stream(zero_words, _BITS)[:, of_groups].contiguous(),
    )


def _gemv_fast(module: StoredModule) -> Weight:
    out_features, in_features = module.shape
    if out_features % 4 or in_features % 64:
        raise module.unsupported(f"the AWQ layout gemv_fast of a matrix {list(module.shape)}")
    words = module.tensor(_QWEIGHT, (out_features // 4, in_features), torch.int16)
    shape = (_padded_groups(module), out_features)
    scales, offsets = (
        module.tensor(own, shape, torch.float16)[: module.n_groups].t().contiguous() for own in (_SCALES, _QZEROS)
    )
    return grouped_codes(module, _fast_codes(words), _VALUES, scales=scales, offsets=offsets)


def _fast_codes(words: Tensor) -> Tensor:
    """Words [out_features / 4, in_features] as codes [out_features, in_features].

    The four nibbles of a word follow one another in a tile, [4 rows, 64 columns]. Column 8a + 2b + c of 32 stands at
    8b + 4c + a there.
    """
    tiles = torch.unflatten(bit_stream(words, _BITS), 1, (-1, 4, 64))  # [out / 4, in / 64, 4, 64]
    rows = tiles.transpose(1, 2).flatten(2).flatten(0, 1)  # [out, in]
    return torch.unflatten(rows, 1, (-1, 4, 2, 4)).permute(0, 1, 4, 2, 3).flatten(1)  # [out, in / 32, b, c, a]


def _padded_groups(module: StoredModule) -> int:
    """Groups of a row as the kernels of gemv store them: whole words of zero points, more of them for small groups."""
    multiple = {64: 2, 32: 4}.get(module.group_size, 1)
    n = -(-module.n_groups // 8)
    return 8 * -(-n // multiple) * multiple


PLUG = Awq()
