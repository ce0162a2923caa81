"""What a plan counts: by hand for a model of a few hundred weights, and as the program itself counts and takes it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.bench.plan import COMPILED, Efficiency, Hardware, ModelOutline, RankPortion, plan_rows, portion
from gptfast_cli.core.config import LlamaSizes, ModelConfig, RopeConfig
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.shapes import KNOWN_SHAPES
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.quantize.allocation import AllocationOptions
from llama_oracle import ours, random_llama
from windowed_models import config_of, without_windows

RECORD = Path(__file__).parents[1] / "gpu" / "records" / "nvidia-h200" / "bench-llama-2-7b-plain.json"
SIZES = LlamaSizes(
    n_layers=2,
    dim=8,
    n_heads=4,
    n_kv_heads=2,
    head_dim=2,
    ffn_dim=12,
    vocab_size=10,
    max_context=2000,
    norm_eps=1e-5,
    rope=RopeConfig(10000.0),
)
CONFIG = SIZES.config()
# by hand, for one of two devices, in elements of 2 bytes: norms 2 * 8, two query heads and one key and value head of 2
# make 8 rows of 8, output 8 * 4, gate and up 12 * 8, down 8 * 6; then a last norm of 8 and 5 rows of 8 of each table
LAYER = 16 + 64 + 32 + 96 + 48
TABLE = 40
KV_TOKEN = 2 * (2 * 2 * 2)  # a key and a value of 2 in 2 layers
# of a token, in elements: in, out and normalized 3 * 8, query, key, value rows 8, heads 4, gate, up and product 3 * 6
ACTIVATIONS = 24 + 8 + 4 + 18


def outline(
    config: ModelConfig,
    mode: str = "plain",
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
) -> ModelOutline:
    return ModelOutline(
        config, AllocationOptions(mode).allocation(config).outline(config, dtype), dtype, kv_dtype or dtype
    )


def needed(of_device: RankPortion, batch_size: int, context: int) -> int:
    """Counted once more, token by token."""
    room = next(n for n in range(0, context + KEY_BLOCK, KEY_BLOCK) if n >= context)
    kv = sum(KV_TOKEN * 2 // of_device.n_devices for _ in range(batch_size)) * room
    return of_device.weight_bytes + kv + of_device.buffer_bytes(batch_size)


def test_a_part_is_counted_as_by_hand() -> None:
    of_device = portion(outline(CONFIG), 2)
    assert of_device.weight_bytes == 2 * (2 * LAYER + 8 + 2 * TABLE)
    assert of_device.kv_bytes(3, 7) == 3 * KEY_BLOCK * KV_TOKEN == of_device.kv_bytes(3, KEY_BLOCK)
    assert of_device.kv_bytes(1, KEY_BLOCK + 1) == 2 * KEY_BLOCK * KV_TOKEN
    assert of_device.buffer_bytes(3) == (512 + 3) * ACTIVATIONS * 2 + 3 * 10 * 4 * 2
    step = of_device.step(3, 7)
    assert step.weight_bytes == {"plain": 2 * (2 * LAYER + 8 + TABLE) + 3 * 16}
    assert step.kv_bytes == 3 * 7 * KV_TOKEN
    assert (step.n_all_reduces, step.message_bytes, step.gathered_bytes) == (5, 3 * 16, 3 * 40)


def test_a_row_has_the_speed_and_the_share_that_known_hardware_gives() -> None:
    hardware = Hardware(bandwidth=1000, memory_bytes=1_000_000, link_bandwidth=480, link_latency=0.25)
    (row,) = plan_rows([portion(outline(CONFIG), 2)], [3], [7], hardware, Efficiency({"plain": 0.5}, 0.125))
    n_bytes = 2 * (2 * LAYER + 8 + TABLE) + 3 * 16 + 21 * KV_TOKEN
    # 5 messages of 48 bytes, and half of 120 bytes of logits
    seconds = n_bytes / 500 + 0.25 + 5 * (0.25 + 0.1) + 0.25 + 0.125
    assert row.step_bytes == n_bytes
    assert row.tok_s == pytest.approx(3 / seconds)
    assert row.mbu == pytest.approx(n_bytes / seconds / 1000)
    assert row.headroom_bytes == 950_000 - needed(portion(outline(CONFIG), 2), 3, 7)
    assert row.fits


def test_a_tied_table_is_held_once_and_read_whole() -> None:
    apart, tied = (portion(outline(replace(CONFIG, tied_embeddings=tied)), 2) for tied in (False, True))
    assert apart.weight_bytes - tied.weight_bytes == 2 * TABLE
    assert apart.step(1, 0).n_bytes == tied.step(1, 0).n_bytes


def test_bytes_are_reported_by_the_scheme_that_they_are_read_in() -> None:
    of_device = portion(outline(replace(SIZES, ffn_dim=64).config(), "int8"), 2)
    weights = {"int8": 2 * (8 * 8 + 8 * 4 + 64 * 8 + 8 * 32) + 5 * 8 + 3 * 8, "plain": 2 * (2 * 16 + 8)}
    scales = {"int8": 2 * (2 * (8 + 8 + 64 + 8) + 5) + 3 * 2, "plain": 0}
    assert of_device.step(3, 0).weight_bytes == {scheme: weights[scheme] + scales[scheme] for scheme in weights}


def test_key_heads_are_copied_where_devices_outnumber_them() -> None:
    kv = [
        portion(outline(replace(SIZES, n_heads=8, ffn_dim=16).config()), n).kv_bytes(1, KEY_BLOCK) for n in (1, 2, 4, 8)
    ]
    assert kv == [32 * KEY_BLOCK, 16 * KEY_BLOCK, 16 * KEY_BLOCK, 16 * KEY_BLOCK]


@pytest.mark.parametrize("tied", [False, True])
def test_a_planned_step_reads_what_the_runner_counts(tied: bool) -> None:
    model = ours(random_llama(tie_word_embeddings=tied))
    runner = Runner(model, 4)
    for row in range(4):
        runner.prefill(row, [1] * 7)
    planned = portion(outline(model.config, dtype=torch.float32), 1)
    assert planned.weight_bytes == model.weight_bytes
    assert planned.step(4, 7).n_bytes == runner.step_bytes(4)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
def test_keys_and_values_take_what_the_cache_takes_and_a_step_reads_what_it_says(kv_dtype: torch.dtype) -> None:
    config = KNOWN_SHAPES["tinyllama-1.1b"]
    planned = portion(outline(config, kv_dtype=kv_dtype), 1)
    cache = KVCache(config, 3, dtype=torch.bfloat16, kv_dtype=kv_dtype, device=torch.device("meta"))
    for context in (0, 1, 256, 1000):
        cache.begin(slice(None), [context] * 3)
        assert planned.kv_bytes(3, context) == cache.n_bytes
        assert planned.step(3, context).kv_bytes == 3 * cache.bytes_read(context)
    room = planned.needed_bytes(3, 1024)
    assert (planned.longest_context(3, room), planned.longest_context(3, room - 1)) == (1024, 896)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("context", [30, 512, 600, 1100])
def test_what_layers_with_windows_take_is_what_the_cache_takes(kv_dtype: torch.dtype, context: int) -> None:
    config = config_of()
    planned = portion(outline(config, dtype=torch.float32, kv_dtype=kv_dtype), 1)
    cache = KVCache(config, 3, dtype=torch.float32, kv_dtype=kv_dtype, device=torch.device("meta"))
    n_prompt, n_new = context - context % 7, min(PREFILL_CHUNK, cache.most_tokens)
    for row in (slice(row, row + 1) for row in range(3)):
        for first in range(0, n_prompt, n_new):
            cache.begin(row, [n := min(n_new, n_prompt - first)])
            cache.advance(row, n)
    for _ in range(n_prompt, context):
        cache.begin(slice(None), [1] * 3)
        cache.advance(slice(None), 1)
    assert cache.n_bytes <= planned.kv_bytes(3, context) <= 1.25 * cache.n_bytes
    whole = portion(outline(without_windows(config), dtype=torch.float32, kv_dtype=kv_dtype), 1)
    if context > 600:
        assert cache.n_bytes < 0.75 * whole.kv_bytes(3, context)
    assert planned.step(3, context).kv_bytes == 3 * cache.bytes_read(context)


def test_a_window_leaves_room_for_a_longer_context_and_more_sequences() -> None:
    config = replace(config_of(), max_context=100_000)
    narrow, wide = (portion(outline(each), 1) for each in (config, without_windows(config)))
    room = wide.needed_bytes(4, 2048)
    longest, largest = narrow.longest_context(4, room), narrow.largest_batch(2048, room)
    assert 2048 == wide.longest_context(4, room) < longest < config.max_context
    assert narrow.needed_bytes(4, longest) <= room < narrow.needed_bytes(4, longest + 1)
    assert 4 == wide.largest_batch(2048, room) < largest
    assert narrow.needed_bytes(largest, 2048) <= room < narrow.needed_bytes(largest + 1, 2048)


@given(
    memory=st.integers(0, 3_000_000),
    batch_size=st.integers(1, 9),
    context=st.integers(1, 2000),
    n_devices=st.sampled_from([1, 2]),
)
def test_the_longest_context_and_the_largest_batch_fit_and_no_more_do(
    memory: int, batch_size: int, context: int, n_devices: int
) -> None:
    of_device = portion(outline(CONFIG), n_devices)
    longest, largest = of_device.longest_context(batch_size, memory), of_device.largest_batch(context, memory)
    assert longest == 0 or needed(of_device, batch_size, longest) <= memory
    assert longest == CONFIG.max_context or needed(of_device, batch_size, longest + 1) > memory
    assert largest == 0 or needed(of_device, largest, context) <= memory
    assert needed(of_device, largest + 1, context) > memory


def test_nothing_is_said_of_memory_that_is_not_known() -> None:
    (row,) = plan_rows([portion(outline(CONFIG), 1)], [1], [7], Hardware(bandwidth=1000), COMPILED)
    assert row.headroom_bytes is row.max_context is row.max_batch_size is row.fits is None
    assert row.tok_s


def test_gpt_fast_ran_what_the_plan_says_fits_and_not_what_it_says_does_not() -> None:
    a100 = Hardware(memory_bytes=80_000_000_000)
    fits = {
        mode: plan_rows([portion(outline(KNOWN_SHAPES["llama-2-70b"], mode), 1)], [1], [208], a100, COMPILED)[0].fits
        for mode in ("plain", "int8", "int4")
    }
    assert fits == {"plain": False, "int8": True, "int4": True}


def test_a_recorded_run_on_a_gpu_took_the_memory_and_nearly_the_time_that_are_planned() -> None:
    record = json.loads(RECORD.read_text())
    (row,) = record["rows"]
    assert row["test"] == "tg128" and row["batch_size"] == 1
    hardware = Hardware(bandwidth=record["bandwidth"]["median_gbps"] * 1e9)
    (planned,) = plan_rows([portion(outline(KNOWN_SHAPES[record["model"]]), 1)], [1], [129], hardware, COMPILED)
    taken = planned.weight_bytes + planned.kv_bytes + planned.buffer_bytes
    assert taken == pytest.approx(row["peak_memory_bytes"], rel=0.01)
    assert planned.tok_s == pytest.approx(row["tok_s"]["median"], rel=0.12)
