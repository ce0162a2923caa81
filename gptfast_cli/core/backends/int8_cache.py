"""Keys and values in a byte each: keys with a scale for each channel of a block, values with one for each token.

A few channels of all keys are much larger than the others, so that keys lose least where a channel has a scale of its
own; values have no such channels (KIVI, Liu et al. 2024, arXiv:2402.02750). A channel's scale is known once a block of
KEY_BLOCK tokens is whole, and so

    a query at position t reads the keys of its own block as they were computed, those of earlier blocks as codes,

which depends on t alone: in whatever pieces a text is fed, and whatever was drafted in vain, the same keys are read.
Two blocks of keys stay as they were computed. A call may write KEY_BLOCK tokens, which two blocks hold, and a row may
be rolled back by as many: the block that it then goes on with is still there.

    code = round(127 x / largest), value = code * largest / 127
"""

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.backends import (
    KEY_BLOCK,
    KEY_TILE,
    QUAD,
    Int8Cache,
)

_LEAST = 1e-30  # of the largest element: what is nearer to 0 becomes 0


def write(cache: Int8Cache, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Put k and v [batch, time, kv_heads, head_dim] into a cache, at most KEY_BLOCK tokens, at [batch, time]."""
    rows = torch.arange(len(k), device=k.device).unsqueeze(-1)  # [batch, 1], against positions [batch, time]
    cache.recent_keys[rows, :, positions % (2 * KEY_BLOCK)] = k
    # those that are touched; codes of a block that is not whole yet are not read
    blocks = torch.stack([positions[:, 0], positions[:, -1]], dim=1) // KEY_BLOCK
    recent = torch.unflatten(cache.recent_keys, 2, (2, KEY_BLOCK))
    codes, scales = quantised(recent[rows, :, blocks % 2], dim=-2)  # [batch, 2, kv_heads, KEY_BLOCK, head_dim]
    tiles = torch.unflatten(F.pad(codes, (0, -codes.shape[-1] % QUAD)), -1, (-1, QUAD))
    tiles = torch.unflatten(tiles, 3, (-1, KEY_TILE)).transpose(4, 5)
    torch.unflatten(cache.key_codes, 2, (-1, KEY_BLOCK // KEY_TILE))[rows, :, blocks] = tiles
    cache.key_scales[rows, :, blocks] = scales
    codes, scales = quantised(v, dim=-1)
    cache.value_codes[rows, :, positions // QUAD, :, positions % QUAD] = codes
    cache.value_scales[rows, :, positions] = scales


def quantised(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Codes of x, and the float32 scales that it shares along `dim`."""
    x = x.float()
    largest = x.abs().amax(dim, keepdim=True).clamp(min=_LEAST)
    steps = torch.full_like(largest, 127) / largest  # a number over a tensor would be rounded twice
    return torch.round(x * steps).to(torch.int8), (largest / 127).squeeze(dim)


def coded_keys(cache: Int8Cache, dtype: torch.dtype) -> Tensor:
    """The keys that the codes stand for, [batch, kv_heads, n_keys, head_dim]."""
    head_dim = cache.key_scales.shape[-1]
    codes = cache.key_codes.transpose(3, 4).flatten(4)[..., :head_dim]  # [batch, kv_heads, tiles, KEY_TILE, head_dim]
    blocks = torch.unflatten(codes.flatten(2, 3).float(), 2, (-1, KEY_BLOCK))
    return (blocks * cache.key_scales.unsqueeze(-2)).flatten(2, 3).to(dtype)


def values(cache: Int8Cache, dtype: torch.dtype) -> Tensor:
    """The values that the codes stand for, [batch, kv_heads, n_keys, head_dim]."""
    codes = cache.value_codes.transpose(3, 4).flatten(2, 3)
    return (codes.float() * cache.value_scales.unsqueeze(-1)).to(dtype)
