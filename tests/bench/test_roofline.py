"""Speed and share of bandwidth come out exactly from known times; what a step reads is counted as by hand."""

import pytest

from gptfast_cli.core.bench.record import roofline_speed
from gptfast_cli.core.bench.repetitions import Repetition, Spread
from gptfast_cli.core.engine.runner import Runner
from llama_oracle import ours, random_llama


def test_speed_and_share_of_known_repetitions() -> None:
    repetitions = [Repetition(seconds, 6_000_000_000, 12e9) for seconds in (1.0, 2.0, 4.0)]
    of_row = roofline_speed(256, repetitions)
    assert of_row.tok_s == Spread(mean=(256 + 128 + 64) / 3, sd=pytest.approx((28672 / 3) ** 0.5), median=128)
    assert (of_row.gbps, of_row.mbu) == (3, 0.25)


def test_each_repetition_is_held_against_the_bandwidth_around_it() -> None:
    # at half the bandwidth half as fast: the share stays, although no one bandwidth explains all three times
    repetitions = [Repetition(1, 80, 100), Repetition(2, 80, 50), Repetition(4, 80, 25)]
    assert roofline_speed(1, repetitions).mbu == 0.8


def test_what_bandwidth_does_not_limit_has_no_share_of_it() -> None:
    of_row = roofline_speed(512, [Repetition(2, None, 100)])
    assert of_row.tok_s == Spread(256, None, 256)
    assert of_row.gbps is of_row.mbu is None


# by hand, for 3 layers, dim 36, 3 heads of 12, ffn 52, vocab 101, in elements of 4 bytes:
#   a layer: norms 2 * 36, query/key/value 3 * 36 * 36, output 36 * 36, gate and up 2 * 52 * 36, down 36 * 52
#   the rest: last norm 36, head 101 * 36; of the embedding one row of 36 a sequence; a cached token 3 * 2 * 36
LAYER = 72 + 3888 + 1296 + 3744 + 1872
STEP = 4 * (3 * LAYER + 36 + 3636)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("batch_size", "depth"), [(1, 0), (1, 7), (4, 1), (4, 300)])
def test_a_decode_step_reads_what_a_count_by_hand_says(tied: bool, batch_size: int, depth: int) -> None:
    runner = Runner(ours(random_llama(tie_word_embeddings=tied)), batch_size)
    for row in range(batch_size):
        if depth:
            runner.prefill(row, [1] * depth)
    assert runner.step_bytes(batch_size) == STEP + batch_size * 4 * (36 + depth * 216)


def test_key_heads_that_queries_share_are_read_once() -> None:
    runner = Runner(ours(random_llama(num_attention_heads=6, num_key_value_heads=2, head_dim=14)), 1)
    empty = runner.step_bytes(1)
    runner.prefill(0, [1] * 10)
    assert runner.step_bytes(1) - empty == 10 * 3 * 2 * 2 * 14 * 4


def test_a_step_reads_nothing_of_rows_that_are_free() -> None:
    runner = Runner(ours(random_llama()), 4)
    runner.prefill(0, [1] * 5)
    runner.prefill(1, [1] * 50)
    assert runner.step_bytes(1) == STEP + 4 * (36 + 5 * 216)
    assert runner.step([1]).whole.isfinite().all()
    assert runner.step_bytes(1) == STEP + 4 * (36 + 6 * 216)
