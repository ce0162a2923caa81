"""The harness's settings of generation mean here what they mean there."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.evals.tasks.harness_model import asked, generation, ignored, requests_of
from gptfast_cli.core.evals.tasks.requests import GREEDY, GenerationRequest, LikelihoodRequest, RollingRequest


def instance(kind: str, *arguments: Any, repeats: int = 1) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", 0, repeats))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GenerationRequest("p", (), 256, GREEDY)),
        ({"until": "x"}, GenerationRequest("p", ("x",), 256, GREEDY)),
        ({"until": ["x", "y"], "max_gen_toks": 7}, GenerationRequest("p", ("x", "y"), 7, GREEDY)),
        ({"max_new_tokens": 8, "max_gen_toks": 7}, GenerationRequest("p", (), 7, GREEDY)),
        ({"max_tokens": 9}, GenerationRequest("p", (), 9, GREEDY)),
        ({"do_sample": False, "temperature": 0.7}, GenerationRequest("p", (), 256, GREEDY)),
        ({"temperature": 0}, GenerationRequest("p", (), 256, GREEDY)),
        ({"temperature": 0.7}, GenerationRequest("p", (), 256, Sampling(0.7, top_k=0))),
        ({"do_sample": True}, GenerationRequest("p", (), 256, Sampling(1, top_k=0))),
        (
            {"do_sample": True, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1},
            GenerationRequest("p", (), 256, Sampling(0.5, 4, 0.9, 0.1, 1.1)),
        ),
    ],
)
def test_settings_of_generation(settings: dict[str, Any], expected: GenerationRequest) -> None:
    assert generation("p", settings) == expected


def test_settings_without_effect_are_reported() -> None:
    assert ignored({"until": ["x"], "num_beams": 4, "do_sample": True}) == {"num_beams"}


def test_repeats_are_one_request_where_they_must_agree_and_samples_where_they_are_drawn() -> None:
    greedy = instance("generate_until", "p", {"until": ["x"]}, repeats=2)
    drawn = instance("generate_until", "p", {"temperature": 1.0}, repeats=3)
    requests = requests_of(asked([greedy, drawn]))
    assert requests[:2] == [GenerationRequest("p", ("x",), 256, GREEDY)] * 2
    assert [request.sample for request in requests[2:] if isinstance(request, GenerationRequest)] == [0, 1, 2]


def test_every_kind_of_request_has_its_own() -> None:
    kinds = [instance("loglikelihood", "a", " b"), instance("loglikelihood_rolling", "a b")]
    assert requests_of(kinds) == [LikelihoodRequest("a", " b"), RollingRequest("a b")]
