"""A model that chooses by itself and goes on gives the tokens, texts and counts of one that is asked for each."""

import pytest
import torch

from cpu_engine import native, weights_of
from gptfast_cli.core.engine.engine import Engine, StepOutput
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.models.decoder import NonFiniteLogitsError
from gptfast_cli.core.models.native import NativeModel
from model_files import drained, prefill, run_to_end

PROMPTS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (1, 5, 9), (80,), (1, 5, 9, 11, 12))
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=1.2, top_k=0),
    Sampling(top_k=20, top_p=0.9, min_p=0.02),
    Sampling(temperature=0, repetition_penalty=1.3),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.5),
]
LIMITS = Limits(max_new_tokens=60, max_context=512, stop_ids=frozenset(range(4)))


@pytest.fixture(scope="module")
def model() -> NativeModel:
    return native(*weights_of("grouped heads, odd sizes", "int8"), torch.bfloat16)


def sequences(sampling: Sampling, limits: Limits = LIMITS) -> list[Request]:
    return [Request(n, prompt, Sampler(sampling, 9, n), limits) for n, prompt in enumerate(PROMPTS)]


def decode(model: NativeModel, all_of_them: list[Request], n_rows: int, most: int) -> list[StepOutput]:
    """The outputs of decode calls."""
    engine = Engine(Runner(model, n_rows), ahead_seconds=1e9)  # however slow this machine is
    for each in all_of_them:
        engine.submit(each)
    outputs = []
    while engine.has_work:
        outputs.append(drained(engine.step(most))[1])
    return [output for output in outputs if output.prefill is None]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_steps_ahead_give_the_tokens_of_steps_one_by_one(model: NativeModel, sampling: Sampling, n_rows: int) -> None:
    one_by_one, ahead = sequences(sampling), sequences(sampling)
    strides = decode(model, one_by_one, 1, most=1)
    assert {count for stride in strides for count in stride.counts} == {1}
    strides = decode(model, ahead, n_rows, most=7)
    assert max(count for stride in strides for count in stride.counts) == 7
    assert [one.generated for one in ahead] == [one.generated for one in one_by_one]
    assert [one.finish_reason for one in ahead] == [one.finish_reason for one in one_by_one]
    assert {"eos", "length"} >= {one.finish_reason for one in ahead}


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("n_rows", [1, 3, 8])
def test_the_tokens_are_those_of_the_sampler(
    model: NativeModel, sampling: Sampling, n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, asked = sequences(sampling), sequences(sampling)
    decode(model, ahead, n_rows, most=16)
    monkeypatch.setattr(Runner, "runs_ahead", False)
    decode(model, asked, n_rows, most=16)
    assert [one.generated for one in ahead] == [one.generated for one in asked]


def test_what_the_steps_read_is_counted_step_by_step(model: NativeModel) -> None:
    free = Limits(41, 512, frozenset())
    one_by_one = decode(model, sequences(SAMPLINGS[0], free)[:1], 1, most=1)
    ahead = decode(model, sequences(SAMPLINGS[0], free)[:1], 1, most=16)
    assert sum(stride.n_bytes for stride in ahead) == sum(stride.n_bytes for stride in one_by_one)
    assert sum(stride.n_tokens for stride in ahead) == sum(stride.n_tokens for stride in one_by_one) == 40
    kv = [stride.n_bytes - one_by_one[0].n_bytes for stride in one_by_one]
    assert kv == [n * model.config.kv_bytes_per_token(2) for n in range(40)]


def test_a_conversation_goes_on_from_what_steps_ahead_left_in_the_cache(model: NativeModel) -> None:
    engine = Engine(Runner(model, 1))
    first = sequences(SAMPLINGS[1], Limits(20, 512, frozenset()))[0]
    run_to_end(engine, [first])
    prompt = (*first.prompt, *first.generated[:11], 40, 41)  # as if the rest came after a stop string
    second = Request(1, prompt, first.sampler, Limits(12, 512, frozenset()))
    output = prefill(engine, second)
    assert (output.n_fed, output.n_reused) == (2, 3 + 11)
    run_to_end(engine, [])
    fresh = Request(1, prompt, first.sampler, Limits(12, 512, frozenset()))
    decode(model, [fresh], 1, most=1)
    assert second.generated == fresh.generated


def test_a_request_for_log_probabilities_is_asked_for_each_token(model: NativeModel) -> None:
    sequence = sequences(Sampling(), Limits(9, 512, frozenset()))[0]
    sequence.n_logprobs = 2
    strides = decode(model, [sequence], 1, most=16)
    assert [stride.counts for stride in strides] == [[1]] * 8


def test_logits_that_are_no_numbers_are_an_error() -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    (norm,) = weights["norm"].parts.values()
    norm.fill_(torch.nan)
    model = native(config, weights, torch.float32)
    engine = Engine(Runner(model, 1))
    sequence = sequences(SAMPLINGS[0])[0]
    sequence.generated.append(5)
    engine._rows.append(sequence)
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite after 4 tokens"):
        drained(engine.step())


def test_threads_that_lag_behind_take_no_part_in_the_next_call() -> None:
    """More threads than processors, and calls of both kinds in turn: what one left must not reach into the other."""
    config, weights = weights_of("grouped heads, odd sizes", "int8")
    crowd = native(config, weights, torch.bfloat16, n_threads=4)
    limits = Limits(12, 512, frozenset())
    expected = sequences(SAMPLINGS[0], limits)
    decode(crowd, expected, 1, most=1)
    for _ in range(6):
        again = sequences(SAMPLINGS[0], limits)
        decode(crowd, again, 1, most=2)
        assert [one.generated for one in again] == [one.generated for one in expected]
