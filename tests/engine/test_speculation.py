"""Speculation gives what the target alone gives: token for token where it is greedy, whatever drafts, row by row."""

import itertools
from collections.abc import Iterable, Sequence

import pytest
import torch

from cpu_engine import native, reference, weights_of
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers import Proposal, Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.models.decoder import Decoder
from model_files import run_to_end

GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1.1, top_k=30)
SHAPE = "grouped heads, odd sizes"
LIMITS = Limits(max_new_tokens=24, max_context=512, stop_ids=frozenset(range(0, 99, 11)))


class Models:
    """A target and a draft that agrees with it now and then, as PyTorch or the CPU engine computes them."""

    def __init__(self, kind: str) -> None:
        config, weights = weights_of(SHAPE, "float32")
        _, drafts = weights_of(SHAPE, "int4-32")  # of the same numbers
        if kind == "native":
            self.target: Decoder = native(config, weights, torch.float32, n_threads=2)
            self.draft: Decoder = native(config, drafts, torch.bfloat16, n_threads=2)
        else:
            self.target, self.draft = reference(config, weights), reference(config, drafts)
        self.vocab_size = config.vocab_size


@pytest.fixture(scope="module", params=["native", "torch"])
def models(request: pytest.FixtureRequest) -> Models:
    return Models(request.param)


def prompts(n: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 12, (n,), generator=generator).tolist()
    return [tuple(torch.randint(4, 90, (length,), generator=generator).tolist()) for length in lengths]


def sequences(n: int, sampling: Sampling, limits: Limits = LIMITS) -> list[Request]:
    return [Request(i, prompt, Sampler(sampling, 9, i), limits) for i, prompt in enumerate(prompts(n))]


class Told:
    """A proposer that knows what will come, and spoils some of it."""

    bytes_per_step = 0
    may_be_empty = False
    native_runner = None

    def __init__(self, answers: dict[tuple[int, ...], list[int]], spoilt: frozenset[int] = frozenset()) -> None:
        self._answers = answers
        self._spoilt = spoilt  # places of an answer

    def begin(self, row: int, prompt: Sequence[int], n_tokens: int | None = None) -> int:
        return 0

    def move(self, source: int, target: int) -> None: ...

    def propose(self, draws: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        proposals = []
        for draw, draft_length in zip(draws, draft_lengths, strict=True):
            known, n = self._answers[tuple(draw.prompt)], len(draw.generated)
            tokens = [(t + 1) % 90 if place in self._spoilt else t for place, t in enumerate(known)][
                n : n + draft_length
            ]
            proposals.append(Proposal(torch.tensor(tokens, dtype=torch.int64), None))
        return proposals


def run(
    model: Decoder, wanted: Sequence[Request], n_rows: int, proposer: Proposer | None = None, k: int = 0
) -> Speculation | None:
    speculation = None if proposer is None else Speculation(proposer, FixedDraftLength(k))
    runner = Runner(model, n_rows)
    run_to_end(Engine(runner, speculation), wanted)
    return speculation


def outcome(wanted: Sequence[Request]) -> list[tuple[list[int], str | None]]:
    return [(each.generated, each.finish_reason) for each in wanted]


def plain(models: Models, n: int, sampling: Sampling = GREEDY, limits: Limits = LIMITS) -> list:
    wanted = sequences(n, sampling, limits)
    run(models.target, wanted, 1)
    return outcome(wanted)


def check_greedy(models: Models, n_prompts: int, cases: Iterable[tuple[int, int]]) -> None:
    """Draft lengths, each with a number of rows."""
    expected = plain(models, n_prompts)
    assert {"eos", "length"} == {reason for _, reason in expected}
    for k, n_rows in cases:
        wanted = sequences(n_prompts, GREEDY)
        speculation = run(models.target, wanted, n_rows, DraftModel(models.draft, n_rows), k)
        assert outcome(wanted) == expected, (k, n_rows)
        histogram = speculation.rounds.histogram
        assert len(histogram) == k + 1 and sum(1 for count in histogram if count) > 1, "some agree, some do not"


def test_greedy_text_is_that_of_the_target_alone(models: Models) -> None:
    check_greedy(models, 12, [(1, 8), (4, 1), (7, 3)])


@pytest.mark.slow
def test_greedy_text_is_that_of_the_target_alone_for_many_prompts(models: Models) -> None:
    check_greedy(models, 100, itertools.product(range(1, 9), (1, 3, 8)))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(1.0, 0, repetition_penalty=1.3)], ids=str)
@pytest.mark.parametrize("kind", ["draft model", "ngram"])
def test_a_row_of_a_batch_is_what_it_is_alone_in_whatever_order(models: Models, sampling: Sampling, kind: str) -> None:
    def proposer(n_rows: int) -> Proposer:
        return NGram(n_rows) if kind == "ngram" else DraftModel(models.draft, n_rows)

    alone = []
    for each in sequences(7, sampling):
        run(models.target, [each], 1, proposer(1), 3)
        alone.append((each.generated, each.finish_reason))
    batched = sequences(7, sampling)
    run(models.target, batched, 4, proposer(4), 3)
    assert outcome(batched) == alone
    backwards = sequences(7, sampling)
    run(models.target, backwards[::-1], 3, proposer(3), 3)
    assert outcome(backwards) == alone


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 0, repetition_penalty=1.3)], ids=str)
def test_a_draft_that_is_the_target_is_accepted_whole(models: Models, sampling: Sampling) -> None:
    limits = Limits(21, 512, frozenset())
    wanted = sequences(3, sampling, limits)
    speculation = run(models.target, wanted, 3, DraftModel(models.target, 3), 4)
    rounds = speculation.rounds
    assert rounds.alpha == pytest.approx(1, abs=1e-5)
    assert rounds.histogram == [0, 0, 0, 0, 12]  # 20 tokens after the first, five a round
    assert rounds.tau == 5
    if sampling.is_greedy:
        assert outcome(wanted) == plain(models, 3, limits=limits)


def test_no_drafted_token_is_accepted_where_none_is_right(models: Models) -> None:
    expected = plain(models, 5)
    answers = {each.prompt: text for each, (text, _) in zip(sequences(5, GREEDY), expected, strict=True)}
    wanted = sequences(5, GREEDY)
    rounds = run(models.target, wanted, 2, Told(answers, frozenset(range(99))), 4).rounds
    assert outcome(wanted) == expected
    assert rounds.histogram[1:] == [0] * (len(rounds.histogram) - 1)
    assert rounds.tau == 1 and rounds.alpha == 0


def test_counts_of_rounds_are_those_of_what_was_right(models: Models) -> None:
    limits = Limits(16, 512, frozenset())
    (expected,) = plain(models, 1, limits=limits)
    (one,) = wanted = sequences(1, GREEDY, limits)
    # 15 tokens after the first in rounds of 4: 1-5 whole, 6-8 up to a wrong one at 8, 9-13 whole, 14-15 cut to depth 1
    rounds = run(models.target, wanted, 1, Told({one.prompt: expected[0]}, frozenset({8})), 4).rounds
    assert outcome(wanted) == [expected]
    assert rounds.histogram == [0, 1, 1, 0, 2]
    assert (rounds.n_rounds, rounds.n_tokens) == (4, 15)
    first, *_, last = rounds.positions
    assert (first.n_drafted, first.n_verified, first.n_accepted) == (4, 4, 4)
    assert (last.n_drafted, last.n_verified, last.n_accepted) == (3, 2, 2)
    assert rounds.alpha == (1 + 2 + 4 + 4) / (1 + 3 + 4 + 4)


def test_an_end_token_inside_a_draft_ends_the_text(models: Models) -> None:
    (free,) = plain(models, 1, limits=Limits(16, 512, frozenset()))
    (one,) = wanted = sequences(1, GREEDY, Limits(16, 512, frozenset({free[0][6]})))
    run(models.target, wanted, 1, Told({one.prompt: free[0]}), 8)
    assert outcome(wanted) == [(free[0][: free[0].index(free[0][6])], "eos")]


@pytest.mark.parametrize("n_context", [13, 14, 15, 16, 17])
def test_a_full_context_ends_the_text_where_it_would_have_ended(models: Models, n_context: int) -> None:
    limits = Limits(99, n_context, frozenset())
    expected = plain(models, 4, limits=limits)
    for k in (1, 3, 8):
        wanted = sequences(4, GREEDY, limits)
        run(models.target, wanted, 4, DraftModel(models.draft, 4), k)
        assert outcome(wanted) == expected


def test_nothing_drafted_is_plain_decoding(models: Models) -> None:
    for sampling in (GREEDY, DRAWN):
        wanted = sequences(3, sampling)
        speculation = run(models.target, wanted, 2, DraftModel(models.draft, 2), 0)
        assert outcome(wanted) == plain(models, 3, sampling)
        assert speculation.rounds.n_rounds == 0 and speculation.rounds.tau is None
        assert speculation.rounds.n_plain_tokens > 0


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(1.0, 0, repetition_penalty=1.3)], ids=str)
def test_a_draft_whose_output_is_no_number_is_as_good_as_none(models: Models, sampling: Sampling) -> None:
    config, weights = weights_of(SHAPE, "float32")
    (norm,) = weights["norm"].parts.values()
    norm.fill_(torch.nan)
    is_native = models.target.has_own_threads
    mad = native(config, weights, torch.float32) if is_native else reference(config, weights)
    wanted = sequences(3, sampling)
    run(models.target, wanted, 2, DraftModel(mad, 2), 3)
    assert outcome(wanted) == plain(models, 3, sampling)


def test_logprobs_are_those_of_the_target(models: Models) -> None:
    output = [sequences(1, GREEDY)[0] for _ in range(2)]
    for each in output:
        each.n_logprobs = 2
    run(models.target, output[:1], 1)
    run(models.target, output[1:], 1, DraftModel(models.draft, 1), 4)
    assert [each.token_id for each in output[1].logprobs] == output[1].generated
    for ours, theirs in zip(output[1].logprobs, output[0].logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_sampled_text_has_the_targets_distribution(models: Models, penalty: float) -> None:
    """The third token of many sequences of one prompt, which rounds reach in several ways."""
    n, limits, sampling = 600, Limits(3, 512, frozenset()), Sampling(0.6, 4, repetition_penalty=penalty)
    counts = []
    for proposer in (None, DraftModel(models.draft, 32)):
        wanted = [Request(i, (5, 9, 30), Sampler(sampling, 4, i), limits) for i in range(n)]
        run(models.target, wanted, 32, proposer, 2)
        counts.append(torch.bincount(torch.tensor([each.generated[2] for each in wanted]), minlength=200).double())
    both = counts[0] + counts[1] >= 10
    difference = ((counts[0] - counts[1]) ** 2 / (counts[0] + counts[1]))[both].sum()
    freedom = int(both.sum()) - 1
    assert difference < freedom + 4 * (2 * freedom) ** 0.5 + 8  # once in 10,000 or less


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4-32"])
def test_the_engine_gives_the_same_text_in_every_dtype(storage: str) -> None:
    """Its bits do not depend on how many tokens it is fed at once, and so neither does a text."""
    narrow = Models.__new__(Models)
    config, weights = weights_of(SHAPE, storage)
    narrow.target = native(config, weights, torch.bfloat16, n_threads=2)
    narrow.draft = native(config, weights_of(SHAPE, "int4-128")[1], torch.bfloat16, n_threads=2)
    check_greedy(narrow, 12, [(4, 1), (4, 3)])


def test_in_bfloat16_text_parts_at_near_ties_alone() -> None:
    """PyTorch may add up otherwise for more rows: a text goes another way only where two tokens are nearly even."""
    config, weights = weights_of(SHAPE, "float32")
    exact, target = reference(config, weights), reference(config, weights, torch.bfloat16)
    wanted = [sequences(60, GREEDY), sequences(60, GREEDY)]
    run(target, wanted[0], 1)
    run(target, wanted[1], 1, DraftModel(exact, 1), 4)
    n_different, margins = 0, []
    for plain_one, drafted in zip(*wanted, strict=True):
        ours, theirs = drafted.generated, plain_one.generated
        if ours == theirs:
            continue
        n_different += 1
        place = next(n for n, (a, b) in enumerate(zip([*ours, -1], [*theirs, -1], strict=False)) if a != b)
        ids = torch.tensor([[*drafted.prompt, *ours[:place]]])
        logits = exact.logits(exact.forward(ids, exact.new_cache(1)))[0, -1]
        first, second = logits.topk(2).values
        margins.append(float((first - second) / logits.std()))
    assert all(margin < 0.05 for margin in margins), f"{n_different} of 60 texts part, at margins of {margins}"
