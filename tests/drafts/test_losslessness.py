"""The losslessness check finds a draft with wrong probabilities, and a verification that accepts too much."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gptfast_cli.core.drafts.candidates import DraftCandidate, JudgeOptions, open_candidate, open_target
from gptfast_cli.core.drafts.losslessness import CheckSize, check_losslessness
from gptfast_cli.core.drafts.report import LosslessnessCheck
from gptfast_cli.core.drafts.texts import JudgePrompt, TargetText
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext
from gptfast_cli.core.engine.speculative.proposers import Proposal
from model_files import drained, settings_in

N_ROWS = 16
DRAWN = Sampling(temperature=0.8)


class Changed:
    """A draft whose proposals are changed on their way."""

    bytes_per_step = 0
    may_be_empty = False
    native_runner = None

    def __init__(self, candidate: DraftCandidate, sharpness: float) -> None:
        self._proposer, self._sharpness = candidate.proposer, sharpness
        self.begin, self.move = self._proposer.begin, self._proposer.move

    def propose(self, draws: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        return [self._changed(each) for each in self._proposer.propose(draws, draft_lengths)]

    def _changed(self, proposal: Proposal) -> Proposal:
        q = proposal.probabilities
        if q is None:
            return proposal
        output = q**self._sharpness
        return Proposal(proposal.tokens, output / output.sum(dim=-1, keepdim=True))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, DraftCandidate]:
    runtime = RuntimeConfig("cpu", "float32", threads=1)
    options = JudgeOptions(settings_in(tmp_path_factory.mktemp("home")), runtime, None, N_ROWS, 8)
    target = drained(open_target("tiny", options))[1]
    return target, drained(open_candidate("tiny-draft", target, options, n_tokens=300))[1]


def check(target: LoadedModel, candidate: DraftCandidate) -> LosslessnessCheck:
    ids = [(1, 5, 9), (1, 30, 31), (1, 40)]
    texts = [TargetText(JudgePrompt(each), (), 40, Sampler(DRAWN, 0, n)) for n, each in enumerate(ids)]
    return drained(check_losslessness(Runner(target.model, N_ROWS), candidate, texts, DRAWN))[1]


def test_a_draft_with_its_true_probabilities_passes_the_losslessness_check(
    pair: tuple[LoadedModel, DraftCandidate],
) -> None:
    target, candidate = pair
    output = check(target, candidate)
    assert output.holds and (output.n_texts, output.n_equal) == (9, 9)
    assert output.degrees > 3 and 1e-4 < output.p_value <= 1


def test_a_draft_with_wrong_probabilities_fails_the_losslessness_check(
    pair: tuple[LoadedModel, DraftCandidate],
) -> None:
    target, candidate = pair
    output = check(target, replace(candidate, proposer=Changed(candidate, 0.25)))
    assert output.n_equal == output.n_texts, "greedy decoding does not use the probabilities"
    assert output.p_value < 1e-4 and not output.holds


def test_verification_that_keeps_everything_is_found_out(
    pair: tuple[LoadedModel, DraftCandidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptfast_cli.core.engine.speculative import speculation, verification

    def all_of_it(best: torch.Tensor, drafted: torch.Tensor, draft_lengths: torch.Tensor) -> verification.Verification:
        return verification.Verification(draft_lengths, best[:, -1], draft_lengths.float())

    monkeypatch.setattr(speculation, "verify_greedy", all_of_it)
    target, candidate = pair
    output = check(target, replace(candidate, proposer=Changed(candidate, 1.0)))
    assert output.n_equal < output.n_texts and not output.holds


def test_a_large_model_is_looked_at_less() -> None:
    assert CheckSize.of(1e-4, 128) == CheckSize()
    middle = CheckSize.of(0.003, 128)
    assert 4 < middle.n_texts < 20 and 400 < middle.n_draws < 2000
    assert CheckSize.of(5.0, 128) == CheckSize(4, 400)
