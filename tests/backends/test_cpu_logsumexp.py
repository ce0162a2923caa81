"""What the CPU engine says of rows of logits is what float64 says, whichever thread looks at them."""

import functools
import math

import pytest
import torch
from torch import Tensor

from cpu_engine import native, weights_of
from gptfast_cli.core.models.native import NativeModel
from gptfast_cli.core.models.transformer import logsumexp_argmax


@functools.cache
def engine(n_threads: int = 1) -> NativeModel:
    return native(*weights_of("own heads, wide", "float32"), torch.float32, n_threads=n_threads)


def random_logits(n_rows: int, vocab_size: int, spread: float = 4) -> Tensor:
    return spread * torch.randn(n_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size))


@pytest.mark.parametrize("vocab_size", [1, 3, 97, 4096, 32_001])
@pytest.mark.parametrize("spread", [0.0, 0.1, 4.0, 40.0])
def test_it_is_that_of_float64(vocab_size: int, spread: float) -> None:
    logits = random_logits(5, vocab_size, spread)
    log_totals, likeliest = engine().logsumexp_argmax(logits)
    torch.testing.assert_close(log_totals, logits.double().logsumexp(dim=-1), rtol=0, atol=1e-6)
    assert likeliest.tolist() == logits.argmax(dim=-1).tolist()


def test_many_tokens_that_are_all_unlikely_count() -> None:
    logits = torch.full((1, 200_000), -25.0)
    logits[0, 77_777] = 0
    log_totals, likeliest = engine().logsumexp_argmax(logits)
    assert log_totals.item() == pytest.approx(math.log1p(199_999 * math.exp(-25)), abs=1e-7)
    assert likeliest.item() == 77_777


def test_a_token_that_is_ruled_out_counts_for_nothing() -> None:
    logits = random_logits(2, 100)
    logits[0, 5:60] = -math.inf
    torch.testing.assert_close(
        engine().logsumexp_argmax(logits)[0], logits.double().logsumexp(dim=-1), rtol=0, atol=1e-6
    )


def test_of_equals_the_lowest_is_the_likeliest() -> None:
    logits = torch.zeros(2, 1000)
    logits[1, [40, 41, 700]] = 1
    assert engine().logsumexp_argmax(logits)[1].tolist() == [0, 40] == logsumexp_argmax(logits)[1].tolist()


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 40, 98])
def test_a_row_with_what_is_no_number_has_no_total_and_the_others_theirs(number: float, place: int) -> None:
    logits = random_logits(3, 99)
    logits[1, place] = number
    for log_totals, _ in (engine().logsumexp_argmax(logits), logsumexp_argmax(logits)):
        assert log_totals.isfinite().tolist() == [True, False, True]


def test_a_row_comes_to_the_same_in_any_company() -> None:
    logits = random_logits(7, 4001)
    log_totals, likeliest = engine().logsumexp_argmax(logits)
    for n_threads in (2, 3):
        batched = engine(n_threads).logsumexp_argmax(logits)
        assert (batched[0].tolist(), batched[1].tolist()) == (log_totals.tolist(), likeliest.tolist())
    for row in range(7):
        assert engine().logsumexp_argmax(logits[row : row + 1])[0].item() == log_totals[row].item()


def test_rows_may_stand_apart() -> None:
    logits = random_logits(4, 300)
    assert (
        engine().logsumexp_argmax(logits[:, :100])[0].tolist()
        == engine().logsumexp_argmax(logits[:, :100].contiguous())[0].tolist()
    )
