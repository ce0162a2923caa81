"""Acceptance along a text are what both models say of its tokens; of given text and of assumed drafts, their means."""

import itertools

import pytest
import torch

from cpu_engine import reference, weights_of
from gptfast_cli.core.drafts.acceptance import AssumedAcceptance, ModelAcceptance, NGramAcceptance, ProbsReader
from gptfast_cli.core.drafts.texts import JudgePrompt, TargetText
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.evals.divergence import Comparison
from gptfast_cli.core.models.decoder import Decoder

SHAPE = "grouped heads, odd sizes"
PROMPT, TOKENS = (5, 9, 30), (7, 7, 12, 80, 3, 7, 12)


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Decoder]:
    config, weights = weights_of(SHAPE, "float32")
    return reference(config, weights), reference(config, weights_of(SHAPE, "int4-32")[1])


def text(temperature: float, *, given: bool = False) -> TargetText:
    prompt = JudgePrompt(PROMPT, completion=TOKENS if given else None)
    return TargetText(prompt, TOKENS, 50, Sampler(Sampling(temperature, top_k=0), 0))


def read(models: tuple[Decoder, Decoder], one: TargetText) -> tuple[ModelAcceptance, torch.Tensor, torch.Tensor]:
    target, draft = models
    acceptance, reader = ModelAcceptance(Runner(draft, 1)), ProbsReader(Runner(target, 1))
    acceptance.read(one, reader.probs(one))
    ids = torch.tensor([[*PROMPT, *TOKENS[:-1]]])
    p, q = (model.logits(model.forward(ids, model.new_cache(1)))[0, len(PROMPT) - 1 :] for model in models)
    return acceptance, p, q


def test_a_block_is_accepted_by_the_ratios_of_both_probabilities(models: tuple[Decoder, Decoder]) -> None:
    acceptance, p, q = read(models, text(0.7))
    probs = [(logits / 0.7).softmax(-1) for logits in (p, q)]
    acceptance_probs = acceptance.acceptance_probs(3)
    own = torch.tensor(TOKENS)
    ratio = (probs[1] / probs[0]).gather(-1, own.unsqueeze(-1)).squeeze(-1)
    assert float(ratio.max()) > 1 > float(ratio.min())
    for n in range(1, len(TOKENS)):
        products = itertools.accumulate([1.0, *ratio[n : n + 3].tolist()], lambda a, b: a * b)
        reached = list(itertools.accumulate(products, min))
        expected = [*(after / before for before, after in itertools.pairwise(reached)), 0, 0][:3]
        assert acceptance_probs.p_accept[0, n].tolist() == pytest.approx(expected, abs=1e-5)
    overlap = torch.minimum(*probs).sum(-1)
    assert acceptance_probs.overlap[0, 1:].tolist() == pytest.approx(overlap[1:].tolist(), abs=1e-5)
    assert acceptance_probs.overlap[0, :1].isnan().all(), "the first token is not drafted"
    assert (acceptance_probs.lengths.tolist(), acceptance_probs.most.tolist()) == ([len(TOKENS)], [50])


def test_alpha_is_that_of_the_divergence(models: tuple[Decoder, Decoder]) -> None:
    acceptance, p, q = read(models, text(1.0))
    comparison = Comparison()
    comparison.add(p[1:], q[1:], torch.tensor(TOKENS[1:]))
    assert float(acceptance.acceptance_probs(1).overlap[0, 1:].mean()) == pytest.approx(
        comparison.result().alpha, abs=1e-5
    )


def test_greedy_tokens_are_accepted_with_probability_0_or_1(models: tuple[Decoder, Decoder]) -> None:
    target, draft = models
    tokens, ids = [], list(PROMPT)
    for _ in range(12):
        ids_tensor = torch.tensor([ids])
        tokens.append(int(target.logits(target.forward(ids_tensor, target.new_cache(1)))[0, -1].argmax()))
        ids.append(tokens[-1])
    one = TargetText(JudgePrompt(PROMPT), tuple(tokens), 50, Sampler(Sampling(temperature=0), 0))
    acceptance, reader = ModelAcceptance(Runner(draft, 1)), ProbsReader(Runner(target, 1))
    acceptance.read(one, reader.probs(one))
    whole = torch.tensor([ids[:-1]])
    said = draft.logits(draft.forward(whole, draft.new_cache(1)))[0, len(PROMPT) - 1 :].argmax(-1)
    assert acceptance.acceptance_probs(1).p_accept[0, :, 0].tolist() == [
        float(a == b) for a, b in zip(said, tokens, strict=True)
    ]
    assert 0 < acceptance.acceptance_probs(1).p_accept.mean() < 1


def test_a_given_completion_counts_by_the_overlap_of_both_distributions(models: tuple[Decoder, Decoder]) -> None:
    acceptance, p, q = read(models, text(1.0, given=True))
    overlap = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)
    assert acceptance.acceptance_probs(1).p_accept[0, :, 0].tolist() == pytest.approx(overlap.tolist(), abs=1e-5)


def test_looked_up_tokens_stay_where_the_text_has_them_too() -> None:
    prompt = JudgePrompt((1, 2, 3, 4, 5))
    one = TargetText(prompt, (9, 1, 2, 3, 4, 8), 50, Sampler(Sampling(temperature=0), 0))
    acceptance = NGramAcceptance(4)
    acceptance.read(one, torch.eye(10)[list(one.tokens)])
    acceptance_probs = acceptance.acceptance_probs(4)
    # after 9 1 2 the prompt goes on with 3 4 5 9: two are right
    assert acceptance_probs.n_proposed[0].tolist() == [0, 0, 0, 4, 4, 4]
    assert acceptance_probs.p_accept[0, 3].tolist() == [1, 1, 0, 0]
    assert acceptance_probs.p_accept[0, 5].tolist() == [0, 0, 0, 0]


def test_an_assumed_alpha_is_that_of_every_token() -> None:
    acceptance = AssumedAcceptance(0.75)
    acceptance.read(text(0.0), torch.empty(0))
    assert acceptance.acceptance_probs(2).p_accept.unique().tolist() == [0.75]
