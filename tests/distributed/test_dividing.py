"""A model divided among devices: what each gets is counted head by head, and what does not divide is said so."""

from collections import Counter
from dataclasses import replace

import pytest

from gptfast_cli.core.config import ModelConfig, RopeConfig
from gptfast_cli.core.decode.known_shapes import KNOWN_SHAPES
from gptfast_cli.core.distributed.dividing import CUT_ALONG_INPUTS, part_of
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import AllocationOptions

CONFIG = ModelConfig(
    family="llama",
    n_layers=2,
    dim=8,
    n_heads=8,
    n_kv_heads=2,
    head_dim=4,
    ffn_dim=64,
    vocab_size=10,
    max_context=16,
    norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    attention_bias=True,
    ffn_bias=True,
)


def part(config: ModelConfig, n_devices: int, mode: str = "plain", group_size: int | None = None) -> ModelConfig:
    return part_of(config, AllocationOptions(mode, group_size).allocation(config).of(config), n_devices)


def test_one_device_has_all_of_it() -> None:
    assert part(CONFIG, 1) == CONFIG


@pytest.mark.parametrize(("n_devices", "kv_heads"), [(2, 1), (4, 1), (8, 1)])
def test_a_part_has_the_rows_of_its_heads_and_the_columns_that_they_feed(n_devices: int, kv_heads: int) -> None:
    shapes = weight_shapes(part(CONFIG, n_devices))
    q_rows, kv_rows, ffn_rows = 32 // n_devices, kv_heads * 4, 64 // n_devices
    vocab = {2: 5, 4: 3, 8: 2}[n_devices]
    assert shapes["layers.1.qkv"] == (q_rows + 2 * kv_rows, 8)
    assert shapes["layers.1.qkv_bias"] == (q_rows + 2 * kv_rows,)
    assert shapes["layers.1.attention_output"] == (8, q_rows)
    assert shapes["layers.1.gate_up"] == (2 * ffn_rows, 8)
    assert shapes["layers.1.down"] == (8, ffn_rows)
    assert shapes["layers.1.ffn_norm"] == shapes["norm"] == shapes["layers.1.down_bias"] == (8,)
    assert shapes["embedding"] == shapes["head"] == (vocab, 8)


def test_all_parts_together_hold_every_head_and_the_same_copies_of_each_key_head() -> None:
    for n_devices in (1, 2, 4, 8):
        of_device = part(CONFIG, n_devices)
        group = CONFIG.n_heads // CONFIG.n_kv_heads
        # device by device: the key heads that its query heads need
        needed = [
            {head // group for head in range(device * of_device.n_heads, (device + 1) * of_device.n_heads)}
            for device in range(n_devices)
        ]
        assert all(len(heads) == of_device.n_kv_heads for heads in needed)
        copies = Counter(head for heads in needed for head in heads)
        assert set(copies.values()) == {max(1, n_devices // CONFIG.n_kv_heads)} and len(copies) == CONFIG.n_kv_heads


@pytest.mark.parametrize(
    ("changes", "n_devices", "says", "divides"),
    [
        ({}, 3, "8 query heads do not divide among 3 devices", "1, 2, 4, 8"),
        ({"n_heads": 12, "n_kv_heads": 4, "ffn_dim": 48}, 6, "4 key and value heads do not", "1, 2, 4, 12"),
        ({"ffn_dim": 36}, 8, "36 elements of the feed-forward do not divide among 8 devices", "1, 2, 4"),
    ],
)
def test_what_does_not_divide_is_said_with_what_does(
    changes: dict[str, int], n_devices: int, says: str, divides: str
) -> None:
    with pytest.raises(UsageError) as refused:
        part(replace(CONFIG, **changes), n_devices)
    assert refused.value.message.startswith(f"--tp {n_devices}: ") and says in refused.value.message
    assert refused.value.hint == f"It divides among {divides}."


def test_a_matrix_of_groups_is_cut_at_their_borders_only() -> None:
    llama = KNOWN_SHAPES["llama-2-7b"]  # 11008 columns in 8 parts are 1376: 43 groups of 32, and 21.5 of 64
    assert part(llama, 8, "int4", 32).ffn_dim == 1376
    with pytest.raises(UsageError, match=r"layers\.0\.down has 1376 columns a device, which groups of 64") as refused:
        part(llama, 8, "int4", 64)
    assert "groups of 32 would" in refused.value.message
    assert refused.value.hint == "It divides among 1, 2, 4."
    assert part(llama, 8, "int8").ffn_dim == 1376  # a row is one group there, and every device keeps its scale


def test_a_matrix_that_is_not_cut_may_end_within_a_group() -> None:
    assert part(replace(CONFIG, ffn_dim=40), 1, "int4").ffn_dim == 40
    with pytest.raises(UsageError, match="attention_output has 16 columns"):
        part(CONFIG, 2, "int4")


def test_parts_of_a_quantised_matrix_weigh_together_what_it_weighs() -> None:
    llama = KNOWN_SHAPES["llama-2-7b"]
    storages = AllocationOptions("int4").allocation(llama).of(llama)
    whole, parts = weight_shapes(llama), weight_shapes(part_of(llama, storages, 4))
    for name in (f"layers.5.{matrix}" for matrix in ("qkv", "gate_up", *CUT_ALONG_INPUTS)):
        assert 4 * storages[name].n_bytes(parts[name], 2) == storages[name].n_bytes(whole[name], 2)
