"""The layout of int4 byte by byte, as its docstring states it, so that what was written once is read for ever."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.schemes import Weight, quantized
from gptfast_cli.core.schemes.int4 import PLUG
from quantized_cases import random_codes


def element(weight: Weight, row: int, column: int) -> float:
    """One element, from bytes alone."""
    codes, scales, zeros = (weight.parts[name][row] for name in ("codes", "scales", "zeros"))
    half = codes.shape[-1]
    group, at = divmod(column, 2 * half)
    code = int(codes[group, at]) % 16 if at < half else int(codes[group, at - half]) // 16
    zero = int(zeros[group // 2]) // 16 if group % 2 else int(zeros[group // 2]) % 16
    return (code - zero) * float(scales[group])


@given(group_size=st.sampled_from(PLUG.group_sizes), in_features=st.integers(1, 300), seed=st.integers(0, 1000))
def test_every_element_is_where_the_layout_says(group_size: int, in_features: int, seed: int) -> None:
    codes, params = random_codes("int4", group_size, rows=2, in_features=in_features, seed=seed)
    weight = PLUG.pack(codes, params, in_features)
    by_hand = [[element(weight, row, column) for column in range(in_features)] for row in range(2)]
    assert torch.equal(PLUG.dense(weight, torch.float32), torch.tensor(by_hand))


def test_a_file_written_by_the_first_version_reads_as_it_did_then() -> None:
    codes = torch.arange(16, dtype=torch.uint8).view(1, 1, 16) * 17  # 0x00, 0x11, ... 0xff
    parts = {
        "codes": codes.repeat(1, 2, 1),
        "scales": torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16),
        "zeros": torch.tensor([[0xF3]], dtype=torch.uint8),
    }
    steps = torch.arange(16).repeat(2)
    expected = torch.cat([(steps - 3) * 0.5, (steps - 15) * 2.0])
    assert torch.equal(PLUG.dense(Weight("int4", (1, 64), parts), torch.float32), expected.unsqueeze(0))


@pytest.mark.parametrize(
    ("group_size", "in_features", "bits"),
    [(32, 4096, 4.625), (64, 4096, 4.3125), (128, 4096, 4.15625), (256, 4096, 4.078125), (32, 11008, 4.625)],
)
def test_bits_a_weight_all_in(group_size: int, in_features: int, bits: float) -> None:
    meta_weight = quantized("int4").meta_weight((11, in_features), group_size)
    assert 8 * meta_weight.n_bytes / (11 * in_features) == bits


@pytest.mark.parametrize(("in_features", "n_bytes"), [(1, 16 + 2 + 1), (33, 32 + 4 + 1), (65, 48 + 6 + 2)])
def test_bytes_of_a_padded_row_counted_by_hand(in_features: int, n_bytes: int) -> None:
    assert quantized("int4").meta_weight((1, in_features), 32).n_bytes == n_bytes
