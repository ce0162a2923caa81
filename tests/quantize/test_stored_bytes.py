"""The bytes that each quantizer stores stay the same from version to version."""

import hashlib

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.quantize.quantizers import CalibratedQuantizer, Compensation, Inputs, quantizers
from gptfast_cli.core.schemes import quantized


def weights(rows: int, columns: int) -> Tensor:
    """Numbers of a recurrence, the same on every machine."""
    at = torch.arange(rows * columns)
    return (((at * 7919 + at * at * 31) % 1009 - 504).float() / 256).view(rows, columns) ** 3


def inputs(columns: int, n_tokens: int) -> Inputs:
    x = weights(n_tokens, columns)
    x = (x + x.roll(1, 1)).double()
    return Inputs((x.t() @ x / n_tokens).float(), n_tokens)


@pytest.mark.parametrize(
    ("name", "scheme", "group_size", "sha256"),
    [
        ("nearest", "int8", None, "3681023f64f5a263"),
        ("nearest", "int4", 32, "80e23f6ccab27809"),
        ("nearest", "int4", 128, "44b74f9ee156a89d"),
        ("search", "int8", None, "3681023f64f5a263"),
        ("search", "int4", 32, "791867f4a9fa4862"),
        ("search", "int4", 128, "1540fefcba82c9b3"),
        ("gptq", "int8", None, "858faf7788a62bf5"),
        ("gptq", "int4", 32, "c0d729a24527aa74"),
        ("gptq", "int4", 128, "386cf80cd7c1b6e3"),
    ],
)
def test_a_quantizer_stores_the_bytes_that_it_stored_before(
    name: str, scheme: str, group_size: int | None, sha256: str
) -> None:
    quantizer = quantizers[name]
    if isinstance(quantizer, CalibratedQuantizer):
        quantizer = quantizer.calibrated(inputs(90, 400), Compensation(block_size=40))
    weight = quantizer.quantize(weights(7, 90), quantized(scheme), group_size)
    stored = b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in weight.parts.values())
    assert hashlib.sha256(stored).hexdigest()[:16] == sha256
