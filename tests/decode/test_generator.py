"""Decoding in a batch, with rows that end at different times, gives each sequence what it would get alone."""

import pytest

from gptfast_cli.core.decode.generator import Generator, Limits, Sequence
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.events import Progress
from gptfast_cli.core.model.transformer import Transformer
from llama_oracle import ours, random_llama

PROMPTS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (1, 5, 9), (80,))
WIDE = Sampling(temperature=1.2, top_k=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return ours(random_llama())


def decode(
    model: Transformer, sequences: list[Sequence], limits: Limits, sampling: Sampling = WIDE
) -> dict[int, list[int]]:
    generator = Generator(model, Sampler(sampling, seed=9), sequences, limits)
    list(generator.prefill())
    while generator.active:
        generator.step()
    return {sequence.id: sequence.generated for sequence in sequences}


def sequences() -> list[Sequence]:
    return [Sequence(row, prompt) for row, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("sampling", [WIDE, Sampling(temperature=0)], ids=["drawn", "greedy"])
def test_a_batch_of_different_prompts_equals_each_alone(model: Transformer, sampling: Sampling) -> None:
    # stop tokens end the rows at different steps
    limits = Limits(max_new_tokens=40, max_context=512, stop_ids=frozenset(range(8)))
    alone: dict[int, list[int]] = {}
    for sequence in sequences():
        alone |= decode(model, [sequence], limits, sampling)
    together = decode(model, sequences(), limits, sampling)
    assert together == alone
    assert decode(model, sequences()[::-1], limits, sampling) == alone
    if not sampling.is_greedy:
        assert len({len(tokens) for tokens in together.values()}) > 2


def test_equal_prompts_are_fed_once(model: Transformer) -> None:
    generator = Generator(model, Sampler(WIDE, seed=0), sequences(), Limits(1, 512, frozenset()))
    fed = [event.done for event in generator.prefill() if isinstance(event, Progress)]
    assert fed == [3, 3 + 6, 3 + 6 + 1]


def test_a_stop_token_ends_a_sequence_and_is_not_part_of_it(model: Transformer) -> None:
    free = Sequence(0, PROMPTS[0])
    decode(model, [free], Limits(20, 512, frozenset()))
    stopped = Sequence(0, PROMPTS[0])
    end = free.generated[12]
    decode(model, [stopped], Limits(20, 512, frozenset({end})))
    assert stopped.generated == free.generated[: free.generated.index(end)]
    assert stopped.finish_reason == "eos"


@pytest.mark.parametrize(("limits", "expected"), [(Limits(7, 512, frozenset()), 7), (Limits(50, 9, frozenset()), 6)])
def test_a_sequence_ends_at_the_token_limit_and_at_a_full_context(
    model: Transformer, limits: Limits, expected: int
) -> None:
    sequence = Sequence(0, PROMPTS[0])
    decode(model, [sequence], limits)
    assert len(sequence.generated) == expected
    assert sequence.finish_reason == "length"


def test_a_prompt_longer_than_a_chunk_gives_the_same_tokens(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(10, 512, frozenset())
    prompt = tuple(range(1, 100))
    whole = decode(model, [Sequence(0, prompt)], limits)
    monkeypatch.setattr("gptfast_cli.core.decode.generator.PREFILL_CHUNK", 7)
    assert decode(model, [Sequence(0, prompt)], limits) == whole
