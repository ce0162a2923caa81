"""Draws follow the probabilities, and depend on seed, sequence and position alone."""

import pytest
import torch

from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.sampler import DrawKey, Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.errors import GptFastError

PLAIN = Sampling(temperature=1.0, top_k=0)


def key(sequence: int, position: int = 0) -> DrawKey:
    return DrawKey(sequence, (), [0] * position)


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    expected = counts.sum() * p
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
    keys = [key(sequence) for sequence in range(40_000)]
    tokens = Sampler(PLAIN, seed=5).draw(p.log().float().expand(len(keys), -1), keys)
    counts = torch.bincount(torch.tensor(tokens), minlength=6).double()
    assert chi_square(counts, p) < 25.7  # 5 degrees of freedom: exceeded once in 10,000


@pytest.mark.parametrize("varied", ["seed", "sequence", "position"])
def test_uniform_numbers_are_uniform_along_each_part_of_their_key(varied: str) -> None:
    fixed = {"seed": 1, "sequence": 2, "position": 3}
    draws = torch.tensor([uniform(**{**fixed, varied: value}) for value in range(50_000)], dtype=torch.float64)
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert chi_square(counts, torch.full((20,), 0.05)) < 52.4  # 19 degrees of freedom: once in 10,000
    neighbours = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
    assert abs(neighbours) < 4 / 50_000**0.5


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    keys = [key(sequence) for sequence in range(5000)]
    assert set(Sampler(PLAIN, seed=0).draw(logits.expand(len(keys), -1), keys)) == {1, 3}


def test_the_smallest_uniform_number_skips_tokens_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfast_cli.core.decode.sampler.uniform", lambda *_: 0.0)
    assert Sampler(PLAIN, seed=0).draw(torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0]]), [key(0)]) == [2]


def test_draws_do_not_depend_on_the_batch_or_its_order() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    keys = [key(sequence, position=sequence * 7) for sequence in range(6)]
    sampler = Sampler(Sampling(top_k=50, top_p=0.9), seed=11)
    together = sampler.draw(logits, keys)
    order = [4, 0, 5, 2, 1, 3]
    assert sampler.draw(logits[order], [keys[row] for row in order]) == [together[row] for row in order]
    assert [sampler.draw(logits[row : row + 1], [keys[row]])[0] for row in range(6)] == together


def test_another_seed_draws_other_tokens() -> None:
    keys = [key(0, position) for position in range(50)]
    logits = torch.zeros(50, 1000)
    assert Sampler(PLAIN, seed=1).draw(logits, keys) != Sampler(PLAIN, seed=2).draw(logits, keys)


def test_temperature_zero_takes_the_lowest_of_equal_tokens() -> None:
    logits = torch.tensor([[0.0, 7.0, 3.0, 7.0, 7.0]]).repeat(1, 40)
    assert Sampler(Sampling(temperature=0), seed=0).draw(logits, [key(0)]) == [1]


def test_the_repetition_penalty_counts_the_prompt_and_the_generated_tokens() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), seed=0)
    logits = torch.tensor([[5.0, 4.0, 3.0, -1.0]])
    assert sampler.draw(logits, [DrawKey(0, (0,), [1])]) == [2]


def test_output_that_is_not_a_number_is_an_error_and_no_token() -> None:
    with pytest.raises(GptFastError, match="NaN"):
        Sampler(PLAIN, seed=0).draw(torch.tensor([[0.0, torch.nan]]), [key(0)])
