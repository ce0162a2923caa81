"""What logits say of the token to come, in PyTorch's operations."""

import torch
from torch import Tensor

from gptfast_cli.core.device import torch_threads

_ROWS_AT_ONCE = 16


def outlook(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See Decoder."""
    return _log_totals(logits), logits.argmax(dim=-1)


def _log_totals(logits: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials of each row, [rows].

    On a CPU a few rows at a time, so that what stands between stays in its cache, and by one thread: several would cut
    a row that stands alone into parts, and add it up in another order.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(dim=-1)
    with torch_threads(1):
        return torch.cat([rows.logsumexp(dim=-1) for rows in torch.split(logits, _ROWS_AT_ONCE)])
