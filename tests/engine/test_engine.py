"""Sequences that come and go in one batch each get what they would get alone, and feed what they share once."""

from collections.abc import Iterable

import pytest
import torch

from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Measured, Progress
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import ours, random_llama
from model_files import drained, prefill, run_to_end

PROMPTS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (1, 5, 9), (80,), (1, 5, 9, 11, 12), (1, 7, 7, 30))
WIDE = Sampling(temperature=1.2, top_k=0)
FREE = Limits(max_new_tokens=20, max_context=512, stop_ids=frozenset())


@pytest.fixture(scope="module")
def model() -> Transformer:
    return ours(random_llama())


def sequence(
    prompt: Iterable[int] = PROMPTS[0], limits: Limits = FREE, *, stream: int = 0, sampling: Sampling = WIDE
) -> Request:
    return Request(stream, tuple(prompt), Sampler(sampling, seed=9, stream=stream), limits)


def decode(
    model: Transformer, *sequences: Request, n_rows: int = 1, chunk: int = PREFILL_CHUNK
) -> dict[int, list[int]]:
    """Generated tokens by stream; as many sequences at once as there are rows."""
    run_to_end(Engine(Runner(model, n_rows), prefill_chunk=chunk), sequences)
    return {sequence.sampler.stream: sequence.generated for sequence in sequences}


@pytest.mark.parametrize("sampling", [WIDE, Sampling(temperature=0)], ids=["drawn", "greedy"])
@pytest.mark.parametrize("n_rows", [2, 3, 6])
def test_a_batch_of_different_prompts_equals_each_alone(model: Transformer, sampling: Sampling, n_rows: int) -> None:
    # stop tokens end the rows at different steps
    limits = Limits(max_new_tokens=40, max_context=512, stop_ids=frozenset(range(8)))

    def sequences() -> list[Request]:
        return [sequence(prompt, limits, stream=stream, sampling=sampling) for stream, prompt in enumerate(PROMPTS)]

    alone: dict[int, list[int]] = {}
    for each in sequences():
        alone |= decode(model, each)
    assert decode(model, *sequences(), n_rows=n_rows) == alone
    assert decode(model, *sequences()[::-1], n_rows=n_rows) == alone
    if not sampling.is_greedy:
        assert len({len(tokens) for tokens in alone.values()}) > 2


def prefills(model: Transformer, *prompts: Iterable[int], n_rows: int) -> list[tuple[int, int]]:
    """Tokens fed and reused by each prompt, begun one after the other."""
    engine = Engine(Runner(model, n_rows))
    outputs = [prefill(engine, sequence(prompt, Limits(2, 512, frozenset()))) for prompt in prompts]
    return [(output.n_fed, output.n_reused) for output in outputs]


def test_equal_prompts_are_fed_once(model: Transformer) -> None:
    assert prefills(model, *[(1, 5, 9)] * 3, n_rows=3) == [(3, 0), (0, 3), (0, 3)]


def test_a_prompt_feeds_only_what_no_row_holds_of_it(model: Transformer) -> None:
    prompts = [(1, 5, 9, 4), (1, 6), (1, 5, 9, 7, 7), (1, 5, 9), (2, 5)]
    assert prefills(model, *prompts, n_rows=5) == [(4, 0), (1, 1), (2, 3), (1, 2), (2, 0)]


def test_a_conversation_feeds_only_its_new_tokens(model: Transformer) -> None:
    engine = Engine(Runner(model, 1))
    first = sequence(limits=Limits(6, 512, frozenset()))
    run_to_end(engine, [first])
    second = sequence([*first.prompt, *first.generated, 40, 41, 42])
    output = prefill(engine, second)
    # the last generated token was drawn and never fed
    assert (output.n_fed, output.n_reused) == (1 + 3, 3 + 5)
    run_to_end(engine, [])
    assert second.generated == decode(model, sequence(second.prompt))[0]


def test_a_row_is_free_as_soon_as_its_sequence_is_over(model: Transformer) -> None:
    engine = Engine(Runner(model, 2))
    long, short, third = (sequence(limits=Limits(n, 512, frozenset())) for n in (9, 2, 2))
    for each in (long, short, third):
        engine.submit(each)
    drained(engine.fill_rows())
    assert (engine.active, engine.unfinished) == ([long, short], [long, short, third])
    drained(engine.step())
    assert engine.active == [long]
    drained(engine.step())
    assert engine.active == [long, third]


def test_progress_counts_the_prompt_and_measures_what_was_fed(model: Transformer) -> None:
    engine = Engine(Runner(model, 1))
    run_to_end(engine, [sequence((1, 2), Limits(1, 512, frozenset()))])
    engine.submit(sequence((1, 2, *[3] * 697), Limits(1, 900, frozenset())))
    events, _ = drained(engine.fill_rows())
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(514, 699), (699, 699)]
    measured = [(event.phase, event.n_tokens) for event in events if isinstance(event, Measured)]
    assert measured == [("prefill", 697), ("first token", 1)]


def test_a_stop_token_ends_a_sequence_and_is_not_part_of_it(model: Transformer) -> None:
    (free,) = decode(model, sequence()).values()
    stopped = sequence(limits=Limits(20, 512, frozenset({free[12]})))
    decode(model, stopped)
    assert stopped.generated == free[: free.index(free[12])]
    assert stopped.finish_reason == "eos"


@pytest.mark.parametrize(("limits", "expected"), [(Limits(7, 512, frozenset()), 7), (Limits(50, 9, frozenset()), 6)])
def test_a_sequence_ends_at_the_token_limit_and_at_a_full_context(
    model: Transformer, limits: Limits, expected: int
) -> None:
    ended = sequence(limits=limits)
    decode(model, ended)
    assert len(ended.generated) == expected
    assert ended.finish_reason == "length"


@pytest.mark.parametrize("n_tokens", [9, 10])
def test_a_prompt_that_leaves_no_room_is_refused(n_tokens: int) -> None:
    Limits(50, 9, frozenset()).check_prompt(8)
    with pytest.raises(UsageError, match=f"has {n_tokens} tokens, and the context holds 9"):
        Limits(50, 9, frozenset()).check_prompt(n_tokens)


def test_a_prompt_longer_than_a_chunk_gives_the_same_tokens(model: Transformer) -> None:
    assert decode(model, sequence(range(1, 100)), chunk=7) == decode(model, sequence(range(1, 100)))


def test_logprobs_are_those_of_the_model_before_any_sampling_option(model: Transformer) -> None:
    reported = sequence(limits=Limits(5, 512, frozenset()), sampling=Sampling(temperature=0.3, top_k=2))
    reported.n_logprobs = 4
    decode(model, reported)
    ids = torch.tensor([[*reported.prompt, *reported.generated]])
    expected = model.logits(model.forward(ids, model.new_cache(1)))[0, len(reported.prompt) - 1 : -1].log_softmax(-1)
    assert [logprob.token_id for logprob in reported.logprobs] == reported.generated
    for token, row in zip(reported.logprobs, expected, strict=True):
        assert token.logprob == row[token.token_id].item()
        assert [logprob for _, logprob in token.top] == row.topk(4).values.tolist()
        assert [row[token_id].item() for token_id, _ in token.top] == row.topk(4).values.tolist()


def test_the_end_token_has_no_logprob(model: Transformer) -> None:
    (free,) = decode(model, sequence()).values()
    stopped = sequence(limits=Limits(20, 512, frozenset({free[3]})))
    stopped.n_logprobs = 0
    decode(model, stopped)
    assert [logprob.token_id for logprob in stopped.logprobs] == stopped.generated
