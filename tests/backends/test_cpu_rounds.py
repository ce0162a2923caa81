"""Rounds that two native models play by themselves are those of the sampler's own verification, token for token."""

import pytest
import torch

from cpu_engine import native, weights_of
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, probabilities
from gptfast_cli.core.engine.speculative import speculation as module
from gptfast_cli.core.engine.speculative.draft_length import (
    DraftLengthPolicy,
    FixedDraftLength,
    InitialEstimate,
    RoundPlan,
    RoundStats,
)
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.models.native import NativeModel
from model_files import drained, prefill, run_to_end

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=1.0, top_k=0),
    Sampling(temperature=0.8, top_k=20),
    Sampling(temperature=1.2, top_k=0, top_p=0.9),
    Sampling(temperature=1.0, top_k=50, top_p=0.95, min_p=0.02),
    Sampling(temperature=0, repetition_penalty=1.3),
    Sampling(temperature=0.9, top_k=30, top_p=0.9, repetition_penalty=1.3),
]
PROMPTS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (80,), (1, 5, 9, 11, 12))


@pytest.fixture(scope="module")
def pair() -> tuple[NativeModel, NativeModel]:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    draft = native(config, weights_of("grouped heads, odd sizes", "int4-32")[1], torch.float32, n_threads=2)
    return native(config, weights, torch.float32, n_threads=2), draft


def answers(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling, limits: Limits, n_rows: int, k: int | DraftLengthPolicy
) -> tuple[list[list[int]], Speculation]:
    wanted = [Request(n, prompt, Sampler(sampling, 11, n), limits) for n, prompt in enumerate(PROMPTS)]
    speculation = speculate(pair, wanted, n_rows, FixedDraftLength(k) if isinstance(k, int) else k)
    return [each.generated for each in wanted], speculation


def speculate(
    pair: tuple[NativeModel, NativeModel], wanted: list[Request], n_rows: int, depth: DraftLengthPolicy
) -> Speculation:
    speculation = Speculation(DraftModel(pair[1], n_rows), depth, ahead_seconds=1e9)  # however slow this machine is
    run_to_end(Engine(Runner(pair[0], n_rows), speculation), wanted)
    return speculation


class Doubting:
    """A depth whose rounds end for doubt, and what it was told of them."""

    def __init__(self, depth: int, max_uncertainty: float, n_rounds: int = 32) -> None:
        self.plan = RoundPlan(depth, n_rounds, max_uncertainty)
        self.told: list[RoundStats] = []

    def next(self, outset: InitialEstimate) -> RoundPlan:
        return self.plan

    def record_steps(self, n_tokens: int, seconds: float) -> None: ...

    def record_rounds(self, depth: int, seconds: float, tally: RoundStats, *, once: float = 0.0) -> None:
        self.told.append(tally)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize(("n_rows", "k"), [(1, 1), (1, 4), (3, 5), (4, 2), (8, 3)])
def test_rounds_in_one_call_give_what_rounds_one_by_one_give(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling, n_rows: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(40, 512, frozenset(range(3)))
    native_texts, their = answers(pair, sampling, limits, n_rows, k)
    monkeypatch.setattr(module, "native_draft", lambda *_: None)
    python_texts, our = answers(pair, sampling, limits, n_rows, k)
    assert native_texts == python_texts
    assert their.rounds.histogram == our.rounds.histogram
    assert their.rounds.positions == our.rounds.positions
    assert (their.rounds.n_rounds, their.rounds.n_tokens) == (our.rounds.n_rounds, our.rounds.n_tokens)
    assert their.rounds.alpha == pytest.approx(our.rounds.alpha, abs=1e-5)


def test_more_rounds_than_one_are_run_in_a_call(pair: tuple[NativeModel, NativeModel]) -> None:
    limits = Limits(60, 512, frozenset())
    engine = Engine(Runner(pair[0], 1), Speculation(DraftModel(pair[1], 1), FixedDraftLength(2), ahead_seconds=1e9))
    sequence = Request(0, PROMPTS[0], Sampler(SAMPLINGS[0], 11), limits)
    prefill(engine, sequence)
    drained(engine.step())
    assert len(sequence.generated) >= 58


def test_logits_that_are_no_numbers_are_an_error(pair: tuple[NativeModel, NativeModel]) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    (norm,) = weights["norm"].parts.values()
    broken = norm.clone()
    norm.fill_(torch.nan)
    spoilt = native(config, weights, torch.float32)
    norm.copy_(broken)
    limits = Limits(12, 512, frozenset())
    expected, _ = answers(pair, SAMPLINGS[0], limits, 2, 0)
    assert answers((pair[0], spoilt), SAMPLINGS[0], limits, 2, 3)[0] == expected, "a draft may be broken"


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("max_uncertainty", [0.0, 1.2, 2.5])
@pytest.mark.parametrize("sampling", [each for each in SAMPLINGS if each.is_greedy], ids=str)
def test_rounds_that_end_for_doubt_give_the_text_of_the_target_alone(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling, n_rows: int, max_uncertainty: float
) -> None:
    limits = Limits(60, 512, frozenset(range(3)))
    expected, _ = answers(pair, sampling, limits, n_rows, 0)
    text, speculation = answers(pair, sampling, limits, n_rows, Doubting(7, max_uncertainty))
    assert text == expected
    rounds = speculation.rounds
    assert sum(each.n_drafted for each in rounds.positions) < 5 * rounds.n_rounds, "they end before the seventh token"
    assert sum(each.n_accepted for each in rounds.positions) > 0


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_rounds_of_drawn_tokens_that_end_for_doubt_follow_the_targets_distribution(
    pair: tuple[NativeModel, NativeModel], penalty: float
) -> None:
    """The third token of many sequences of one prompt: the first round, of two tokens at most, may end after one."""
    n, sampling, depth = 2000, Sampling(0.6, 4, repetition_penalty=penalty), Doubting(2, 0.5)
    counts = []
    for policy in (FixedDraftLength(0), depth):
        limits = Limits(4, 512, frozenset())
        wanted = [Request(i, (5, 9, 30), Sampler(sampling, 4, i), limits) for i in range(n)]
        speculate(pair, wanted, 1, policy)
        pairs = torch.tensor([each.generated[1] * 1000 + each.generated[2] for each in wanted])
        counts.append(pairs)
    assert 0.1 < sum(each.n_drafted == 1 for each in depth.told) / len(depth.told) < 0.9
    _, places = torch.cat(counts).unique(return_inverse=True)
    ours, theirs = (torch.bincount(each, minlength=int(places.max()) + 1).double() for each in places.view(2, n))
    both = ours + theirs >= 10
    difference = ((ours - theirs) ** 2 / (ours + theirs))[both].sum()
    freedom = int(both.sum()) - 1
    assert difference < freedom + 4 * (2 * freedom) ** 0.5 + 8  # once in 10,000 or less


@pytest.mark.parametrize("sampling", [each for each in SAMPLINGS if each.is_greedy], ids=str)
def test_a_draft_that_is_the_target_is_accepted_whole_wherever_rounds_end(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling
) -> None:
    limits = Limits(60, 512, frozenset())
    for max_uncertainty in (0.0, 1.2):
        _, speculation = answers((pair[0], pair[0]), sampling, limits, 2, Doubting(7, max_uncertainty))
        assert all(each.n_accepted == each.n_drafted for each in speculation.rounds.positions)


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2]], ids=str)
def test_a_doubt_is_what_a_token_lacked_of_certainty(pair: tuple[NativeModel, NativeModel], sampling: Sampling) -> None:
    limits, compared = Limits(3, 512, frozenset()), []  # one token is drafted, after the first and before the last
    for seed in range(40):
        depth, sequence = Doubting(1, 99.0), Request(0, PROMPTS[1], Sampler(sampling, seed), limits)
        speculate(pair, [sequence], 1, depth)
        told, logits = depth.told[0], Runner(pair[1], 1).prefill(0, [*PROMPTS[1], sequence.generated[0]]).whole[0]
        assert told.n_drafted == 1
        if sampling.is_greedy:
            compared.append((told.uncertainty, 1 - float(logits.softmax(-1).max())))
        elif told.n_accepted:
            compared.append((told.uncertainty, 1 - float(probabilities(logits, sampling)[sequence.generated[1]])))
    uncertainties, expected = zip(*compared, strict=True)
    assert uncertainties == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.05


def test_a_batch_drafts_on_until_it_doubts_every_row(pair: tuple[NativeModel, NativeModel]) -> None:
    doubtful, sure = SAMPLINGS[0], Sampling(temperature=1.0, top_k=1)  # of a single token nothing else can be drawn
    for samplings, n_drafted in (([doubtful], 2), ([sure], 7), ([doubtful, sure], 14), ([doubtful, doubtful], 4)):
        wanted = [
            Request(n, PROMPTS[n], Sampler(sampling, 11, n), Limits(12, 512, frozenset()))
            for n, sampling in enumerate(samplings)
        ]
        depth = Doubting(7, 1.2, n_rounds=1)
        speculate(pair, wanted, len(wanted), depth)
        assert depth.told[0].n_drafted == n_drafted
