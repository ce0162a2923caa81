"""A certificate finds a draft that lies about its law, and verification that keeps what it should not."""

from collections.abc import Sequence as Rows
from dataclasses import replace

import pytest
import torch

from gptfast_cli.core.decode.building import Placing
from gptfast_cli.core.decode.proposers import Proposal
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import Draw, Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.measure.drafts.certificate import Extent, certify
from gptfast_cli.core.measure.drafts.contestants import Contestant, Means, Target, open_contestant, open_target
from gptfast_cli.core.measure.drafts.judgement import Certificate
from gptfast_cli.core.measure.drafts.texts import Prompt, Text
from model_files import drained, settings_in

N_ROWS = 16
DRAWN = Sampling(temperature=0.8)


class Changed:
    """A draft whose proposals are changed on their way."""

    bytes_per_step = 0

    def __init__(self, contestant: Contestant, sharpness: float) -> None:
        self._proposer, self._sharpness = contestant.proposer, sharpness
        self.begin, self.move = self._proposer.begin, self._proposer.move

    def propose(self, draws: Rows[Draw], depths: Rows[int]) -> list[Proposal]:
        return [self._changed(each) for each in self._proposer.propose(draws, depths)]

    def _changed(self, proposal: Proposal) -> Proposal:
        q = proposal.probabilities
        if q is None:
            return proposal
        told = q**self._sharpness
        return Proposal(proposal.tokens, told / told.sum(dim=-1, keepdim=True))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Contestant]:
    placing = Placing("cpu", "float32", threads=1)
    means = Means(settings_in(tmp_path_factory.mktemp("home")), placing, None, N_ROWS, 8)
    target = drained(open_target("tiny", means))[1]
    return target, drained(open_contestant("tiny-draft", target, means, n_tokens=300))[1]


def certificate(target: Target, contestant: Contestant) -> Certificate:
    ids = [(1, 5, 9), (1, 30, 31), (1, 40)]
    texts = [Text(Prompt(each), (), 40, Sampler(DRAWN, 0, n)) for n, each in enumerate(ids)]
    return drained(certify(Runner(target.model, N_ROWS), contestant, texts, DRAWN))[1]


def test_a_draft_that_tells_the_truth_is_certified(pair: tuple[Target, Contestant]) -> None:
    target, contestant = pair
    told = certificate(target, contestant)
    assert told.holds and (told.n_texts, told.n_equal) == (9, 9)
    assert told.degrees > 3 and 1e-4 < told.p_value <= 1


def test_a_draft_that_lies_about_its_law_is_found_out(pair: tuple[Target, Contestant]) -> None:
    target, contestant = pair
    told = certificate(target, replace(contestant, proposer=Changed(contestant, 0.25)))
    assert told.n_equal == told.n_texts, "where no token is drawn, laws say nothing"
    assert told.p_value < 1e-4 and not told.holds


def test_verification_that_keeps_everything_is_found_out(
    pair: tuple[Target, Contestant], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptfast_cli.core.decode import speculation, verification

    def all_of_it(best: torch.Tensor, drafted: torch.Tensor, depths: torch.Tensor) -> verification.Verification:
        return verification.Verification(depths, best[:, -1], depths.float())

    monkeypatch.setattr(speculation, "verify_greedy", all_of_it)
    target, contestant = pair
    told = certificate(target, replace(contestant, proposer=Changed(contestant, 1.0)))
    assert told.n_equal < told.n_texts and not told.holds


def test_a_large_model_is_looked_at_less() -> None:
    assert Extent.of(1e-4, 128) == Extent()
    middle = Extent.of(0.003, 128)
    assert 4 < middle.n_texts < 20 and 400 < middle.n_draws < 2000
    assert Extent.of(5.0, 128) == Extent(4, 400)
