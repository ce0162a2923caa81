"""The layout of int8, as its docstring states it."""

import pytest
import torch

from gptfast_cli.core.schemes import Weight, quantized
from gptfast_cli.core.schemes.int8 import PLUG


def test_a_file_written_by_the_first_version_reads_as_it_did_then() -> None:
    codes = torch.tensor([[-127, 0, 127], [1, -2, 3]], dtype=torch.int8)
    parts = {"codes": codes, "scales": torch.tensor([0.5, 2.0], dtype=torch.bfloat16)}
    expected = torch.tensor([[-63.5, 0, 63.5], [2, -4, 6]])
    assert torch.equal(PLUG.dense(Weight("int8", (2, 3), parts), torch.float32), expected)


@pytest.mark.parametrize(("shape", "n_bytes"), [((1, 1), 1 + 2), ((5, 33), 5 * 33 + 5 * 2)])
def test_bytes_counted_by_hand(shape: tuple[int, int], n_bytes: int) -> None:
    assert quantized("int8").meta_weight(shape, None).n_bytes == n_bytes
