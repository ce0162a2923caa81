"""A model divided among devices: what each gets is counted head by head, and what does not divide is said so."""

from collections import Counter
from dataclasses import replace

import pytest

from gptfast_cli.core.config import LlamaSizes, ModelConfig, RopeConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.models.weights import weight_shapes

SIZES = LlamaSizes(
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
CONFIG = SIZES.config()


def part(config: ModelConfig, n_devices: int) -> ModelConfig:
    check_divides(config, n_devices)
    return ModelShard(config, 0, n_devices).config


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
        of_device = part(CONFIG, n_devices).layers[0].attention
        group = SIZES.n_heads // SIZES.n_kv_heads
        # device by device: the key heads that its query heads need
        needed = [
            {head // group for head in range(device * of_device.n_heads, (device + 1) * of_device.n_heads)}
            for device in range(n_devices)
        ]
        assert all(len(heads) == of_device.n_kv_heads for heads in needed)
        copies = Counter(head for heads in needed for head in heads)
        assert set(copies.values()) == {max(1, n_devices // SIZES.n_kv_heads)} and len(copies) == SIZES.n_kv_heads


@pytest.mark.parametrize(
    ("changes", "n_devices", "says", "divides"),
    [
        ({}, 3, "8 query heads are not divisible by 3", "1, 2, 4, 8"),
        ({"n_heads": 12, "n_kv_heads": 4, "ffn_dim": 48}, 6, "4 KV heads are not divisible by 6", "1, 2, 4, 12"),
        ({"ffn_dim": 36}, 8, "ffn_dim 36 is not divisible by 8", "1, 2, 4"),
    ],
)
def test_what_does_not_divide_is_said_with_what_does(
    changes: dict[str, int], n_devices: int, says: str, divides: str
) -> None:
    with pytest.raises(UsageError) as refused:
        part(replace(SIZES, **changes).config(), n_devices)
    assert refused.value.message.startswith(f"--tp {n_devices}: ") and says in refused.value.message
    assert refused.value.hint == f"Possible values: {divides}."
