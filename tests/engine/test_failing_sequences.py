"""A sequence whose logits are not finite fails alone: those beside it, and those after it in its row, go on as ever."""

import pytest
import torch

from cpu_engine import native, reference, weights_of
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, draw_tokens
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers import Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.models.decoder import Decoder, Logits, NonFiniteLogitsError
from model_files import run_to_end

BAD = 77  # whose embedding is NaN
PROMPTS = ((1, 5, 9), (1, 7, BAD, 30), (80,), (BAD,), (1, 5, 9, 11, 12), (80, 5), (1, 7, 7, 30, 2, 4))
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1.0, top_k=20)
SAMPLINGS = [GREEDY, DRAWN, Sampling(1.0, 20, repetition_penalty=1.1)]
LIMITS = Limits(max_new_tokens=24, max_context=512, stop_ids=frozenset())


def spoilt(kind: str, *also: int) -> Decoder:
    """A model with NaN for one token, which it never says, and for others that it may say."""
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    (embedding,), (head,) = weights["embedding"].parts.values(), weights["head"].parts.values()
    embedding[[BAD, *also]] = torch.nan
    head[BAD] = 0
    if kind == "reference":
        return reference(config, weights)
    return native(config, weights, torch.float32, kv_dtype=torch.int8 if "int8" in kind else None)


@pytest.fixture(scope="module", params=["engine", "reference", "engine, int8 keys"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> Decoder:
    return spoilt(kind)


def sequences(sampling: Sampling, prompts: tuple[tuple[int, ...], ...] = PROMPTS) -> list[Request]:
    return [Request(n, prompt, Sampler(sampling, 9, n), LIMITS) for n, prompt in enumerate(prompts)]


def decode(model: Decoder, wanted: list[Request], n_rows: int, proposer: Proposer | None = None) -> None:
    speculation = None if proposer is None else Speculation(proposer, FixedDraftLength(3))
    run_to_end(Engine(Runner(model, n_rows), speculation, isolates_failures=True), wanted)


def expected(model: Decoder, sampling: Sampling) -> list[list[int]]:
    """What the sound prompts give, each alone in a fresh cache; the others give nothing."""
    alone = sequences(sampling)
    for each in alone:
        if BAD not in each.prompt:
            decode(model, [each], 1)
    return [each.generated for each in alone]


def proposers(model: Decoder, n_rows: int) -> dict[str, Proposer | None]:
    return {"no draft": None, "itself": DraftModel(model, n_rows), "lookup": NGram(n_rows)}


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize(
    ("sampling", "who"),
    [*((sampling, "no draft") for sampling in SAMPLINGS), (GREEDY, "itself"), (GREEDY, "lookup")],
    ids=["greedy", "drawn", "penalty", "itself", "lookup"],
)
def test_a_prompt_whose_logits_are_not_finite_fails_alone(
    model: Decoder, sampling: Sampling, n_rows: int, who: str
) -> None:
    wanted = sequences(sampling)
    decode(model, wanted, n_rows, proposers(model, n_rows)[who])
    assert [each.generated for each in wanted] == expected(model, sampling)
    for each in wanted:
        assert each.finish_reason == ("error" if BAD in each.prompt else "length")
        assert isinstance(each.failure, NonFiniteLogitsError) == (BAD in each.prompt)


@pytest.mark.parametrize(
    ("sampling", "who"),
    [(DRAWN, "no draft"), *((GREEDY, who) for who in ("no draft", "itself", "lookup", "a draft that knows it"))],
    ids=["drawn", "greedy", "itself", "lookup", "a draft that knows it"],
)
def test_a_sequence_fails_where_plain_decoding_does(kind: str, model: Decoder, sampling: Sampling, who: str) -> None:
    """In the middle of steps that run ahead, or of a round in which the token was drafted."""
    sound = expected(model, sampling)
    says = next(token for text in sound for token in text[3:-1] if token not in text[:3])
    worse = spoilt(kind, says)
    wanted = [each for each in sequences(sampling) if not {BAD, says} & {*each.prompt}]
    proposer = DraftModel(model, 3) if who == "a draft that knows it" else proposers(worse, 3)[who]
    decode(worse, wanted, 3, proposer)
    assert any(each.failure is not None for each in wanted)
    for each in wanted:
        text = sound[each.id]
        n = text.index(says) + 1 if says in text[:-1] else len(text)
        assert each.generated == text[:n]
        assert (each.finish_reason == "error") == (n < len(text))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_draft_whose_logits_are_not_finite_drafts_nothing(kind: str, sampling: Sampling) -> None:
    """The draft has NaN for a token of the prompt, and the target has not."""
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    target = reference(config, weights) if kind == "reference" else native(config, weights, torch.float32)
    wanted, plain = sequences(sampling), sequences(sampling)
    decode(target, wanted, 3, DraftModel(spoilt(kind), 3))
    decode(target, plain, 3)
    assert {each.finish_reason for each in wanted} == {"length"}
    if sampling.is_greedy:
        assert [each.generated for each in wanted] == [each.generated for each in plain]


def test_unless_failures_are_isolated_one_is_raised(model: Decoder) -> None:
    engine = Engine(Runner(model, 1))
    with pytest.raises(NonFiniteLogitsError, match="after 4 tokens"):
        run_to_end(engine, sequences(GREEDY)[1:])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "penalty"])
def test_no_token_is_drawn_from_logits_that_are_not_finite(sampling: Sampling, wrong: float) -> None:
    logits = torch.zeros(3, 9)
    logits[0, 4], logits[1] = wrong, -torch.inf
    draws = [each.next_draw for each in sequences(sampling, ((1,), (1,), (1,)))]
    first, second, third = draw_tokens(Logits(logits), draws)
    assert first == second == 9 and third < 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_advice_fits_the_dtype(dtype: torch.dtype) -> None:
    hint = NonFiniteLogitsError(dtype, 7).hint
    assert ("--dtype" in hint) == (dtype is torch.float16)
