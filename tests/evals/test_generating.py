"""Answers in a model's own words are what it says alone, cut at the first stop string, whatever else is asked."""

from pathlib import Path

import pytest

from chat_model import chat_model
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.evals.tasks.request_runner import _request, generated
from gptfast_cli.core.evals.tasks.requests import GREEDY, GenerationRequest
from gptfast_cli.core.events import result_of
from model_files import settings_in

WIDE = Sampling(temperature=1.5, top_k=0)
PROMPTS = ("Once upon a time", "Q: What is 3 + 4?\nA:", "Once upon a time, in a", "def add(a, b):", "Anna: Hello, Tim!")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    settings = settings_in(tmp_path_factory.mktemp("home"))
    return result_of(load("tiny-draft", settings, RuntimeConfig(dtype="float32", threads=1)))


def answers(loaded: LoadedModel, *requests: GenerationRequest, batch_size: int = 8, seed: int = 7) -> list[str]:
    assert loaded.tokenizer is not None
    bos_rules = bos_rules_of(loaded, loaded.tokenizer)
    found = dict(generated(loaded, bos_rules, requests, batch_size=batch_size, seed=seed))
    return [str(found[number]) for number in range(len(requests))]


@pytest.mark.parametrize("sampling", [GREEDY, WIDE], ids=["greedy", "drawn"])
def test_an_answer_does_not_depend_on_what_else_is_asked(sampling: Sampling, loaded: LoadedModel) -> None:
    requests = [GenerationRequest(prompt, ("\n\n",), 5 + n, sampling) for n, prompt in enumerate(PROMPTS * 2)]
    batched = answers(loaded, *requests, batch_size=3)
    assert batched == [answers(loaded, request)[0] for request in requests]


def test_drawn_answers_differ_by_sample_and_seed_and_are_the_same_again(loaded: LoadedModel) -> None:
    several = [GenerationRequest(PROMPTS[0], (), 12, WIDE, sample) for sample in range(4)]
    assert len(set(answers(loaded, *several))) == 4
    assert answers(loaded, *several) == answers(loaded, *several)
    assert answers(loaded, *several) != answers(loaded, *several, seed=8)


def test_an_answer_ends_before_the_first_stop_string_and_at_its_length(loaded: LoadedModel) -> None:
    (whole,) = answers(loaded, GenerationRequest(PROMPTS[0], (), 60, GREEDY))
    for until in ((" lived", "."), (".", " lived"), (", ",)):
        (cut,) = answers(loaded, GenerationRequest(PROMPTS[0], until, 60, GREEDY))
        assert cut == whole[: min(whole.find(stop) for stop in until if stop in whole)]
    (short,) = answers(loaded, GenerationRequest(PROMPTS[0], ("never said",), 3, GREEDY))
    assert whole.startswith(short) and len(short) < len(whole)


def test_a_special_token_among_the_stop_strings_ends_an_answer_as_a_token(tmp_path: Path) -> None:
    model = result_of(
        load(str(chat_model(tmp_path)), settings_in(tmp_path), RuntimeConfig("cpu", "float32", threads=1))
    )
    assert model.tokenizer is not None
    asked = GenerationRequest("A", ("\n", "<|im_end|>"), 9)
    sequence = _request(0, asked, model, bos_rules_of(model, model.tokenizer), 0)
    sequence.take(65)
    assert sequence.finish_reason is None
    sequence.take(259)
    assert (sequence.finish_reason, sequence.generated) == ("stop", [65])


def by_hand(loaded: LoadedModel, given: list[int], n_tokens: int) -> str:
    """What the most probable tokens say, one after the other."""
    assert loaded.tokenizer is not None
    tokens = list(given)
    for _ in range(n_tokens):
        cache = loaded.model.new_cache(1)
        tokens.append(int(loaded.model.step([tokens], cache, slice(0, 1))[0].argmax()))
    return loaded.tokenizer.decode(tokens[len(given) :])


def test_the_tokens_are_the_most_probable_ones_behind_the_prompt(loaded: LoadedModel) -> None:
    assert loaded.tokenizer is not None
    expected = by_hand(loaded, loaded.tokenizer.encode(PROMPTS[1]), 6)
    assert answers(loaded, GenerationRequest(PROMPTS[1], (), 6, GREEDY)) == [expected]


def test_a_prompt_that_is_too_long_loses_its_beginning(loaded: LoadedModel) -> None:
    assert loaded.tokenizer is not None
    prompt = PROMPTS[0] * 200
    given = loaded.tokenizer.encode(prompt)[-(loaded.config.max_context - 10) :]
    assert answers(loaded, GenerationRequest(prompt, (), 10, GREEDY)) == [by_hand(loaded, given, 10)]


def test_an_answer_as_long_as_the_context_is_refused(loaded: LoadedModel) -> None:
    refused, answer = answers(
        loaded, GenerationRequest("x", (), loaded.config.max_context, GREEDY), GenerationRequest("x", (), 2, GREEDY)
    )
    assert "512 new tokens exceed" in refused and "Failure" not in answer
