"""Speculative decoding: rounds of one proposal and one verification, natively where both models can.

What comes out has the target's own law: token for token that of plain decoding where the most probable ones are taken,
in distribution where tokens are drawn. Rows accept as much as each of them can, and wait for none.
"""

import math
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.backends.cpu.rounds import (
    NativeRounds,
    RoundLimits,
    RoundRow,
    run_rounds,
)
from gptfast_cli.core.backends.phases import phase
from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.engine.request import Request
from gptfast_cli.core.engine.runner import AHEAD_SECONDS, Runner, native_choice
from gptfast_cli.core.engine.sampling import ACCEPTANCE, SamplingContext, distribution, most_probable, token_logprobs
from gptfast_cli.core.engine.speculative.draft_length import (
    MAX_ROUNDS,
    DraftLengthPolicy,
    DraftOptions,
    InitialEstimate,
    RoundPlan,
    RoundStats,
)
from gptfast_cli.core.engine.speculative.proposers import Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.verification import Rounds, Verification, verify, verify_greedy
from gptfast_cli.core.models.decoder import Decoder, Logits, NonFiniteLogitsError
from gptfast_cli.core.stopwatch import Splits, Stopwatch

_IN_ONE_PASS = 7  # drafted tokens that are verified, after the one before them, while weights are read once: TILE - 1


def native_draft(proposer: Proposer, target: Runner, sequences: Rows[Request]) -> Runner | None:
    """The rows of a draft that can play: both models choose by themselves, and no more is asked of their logits."""
    if not isinstance(proposer, DraftModel) or not (proposer.runner.runs_ahead and target.runs_ahead):
        return None
    return proposer.runner if all(sequence.wants_tokens_alone for sequence in sequences) else None


def round_limits(plan: RoundPlan, n_left: int, n_rounds: int) -> RoundLimits:
    """Up to so many of the planned rounds, one at least, of sequences of which one has `n_left` tokens to come.

    A round that ends for doubt may go on for longer than what pays on average while the draft is sure.
    """
    draft_length = plan.draft_length if math.isinf(plan.max_uncertainty) else max(plan.draft_length, _IN_ONE_PASS)
    return RoundLimits(max(1, min(n_rounds, plan.n_rounds)), min(draft_length, n_left - 1), plan.max_uncertainty)


def run_rounds_native(target: Runner, draft: Runner, sequences: Rows[Request], limits: RoundLimits) -> NativeRounds:
    """Rounds of sequences that have the first rows of both; they are not told of it yet.

    The round after which one of them is over is the last.
    """
    texts = [_text(row, sequence, draft) for row, sequence in enumerate(sequences)]
    stops = frozenset().union(*(sequence.limits.stop_ids for sequence in sequences))
    longest = max(text.n_held + len(text.rest) for text in texts) + (limits.n_rounds + 1) * (limits.draft_length + 1)
    with target.alone():
        native = run_rounds(
            target.side(len(texts), longest), draft.side(len(texts), longest), texts, limits, tuple(stops)
        )
    for row, (text, n_held) in enumerate(zip(texts, native.n_held, strict=True)):
        given = [token for each in native.rounds for token in each[row].tokens]
        target.hold(row, [text.rest[-1], *given[:-1]])
        draft.hold(row, [*text.rest, *given][: n_held - text.n_held])
    return native


def _text(row: int, sequence: Request, draft: Runner) -> RoundRow:
    rest, sampler = draft.truncate_to(row, sequence.prompt, sequence.generated), sequence.sampler
    return RoundRow(
        row, sequence.n_left, draft.n_held(row), rest, sampler.seed, sampler.stream, native_choice(sampler.sampling)
    )


Seconds = tuple[float, float, float]  # of drafting, verifying and sampling

_HOST_SECONDS = 300e-6  # first guess of a round's time beside the models, run step by step
_NATIVE_HOST_SECONDS = 50e-6  # the same, for rounds run in one native call


@dataclass(slots=True)
class RoundOutput:
    """What decoding gave: tokens to each sequence, bytes that were read for them, and what rounds came to."""

    counts: list[int]
    n_bytes: int
    stats: RoundStats = field(default_factory=RoundStats)


class Speculation:
    """A proposer beside a target; the generator's runner holds the target's rows, which are the proposer's too."""

    def __init__(
        self,
        proposer: Proposer,
        policy: DraftLengthPolicy,
        *,
        drafting: DraftOptions | None = None,
        load_seconds: float = 0.0,
        is_replicated: bool = False,
    ) -> None:
        """`is_replicated`: each rank of the target has the whole proposer, and all propose the same."""
        self.rounds = Rounds()
        self.drafting = drafting  # what it was made for, where a person asked for it
        self.load_seconds = load_seconds  # of the proposer
        self.is_replicated = is_replicated
        self._proposer = proposer
        self._policy = policy
        self._plan = RoundPlan(0, 1)
        self._may_draft = False  # the planned round is not of last tokens alone
        self._round_seconds: float | None = None  # of the last round

    def begin(self, runner: Runner, row: int, prompt: Rows[int]) -> None:
        """A sequence with this prompt takes a row."""
        watch = Stopwatch(runner.model.device)
        with watch, phase("draft"), runner.alone():
            self._proposer.begin(row, prompt)
        self.rounds.draft_prefill_seconds += watch.seconds

    def move(self, source: int, target: int) -> None:
        """The sequence of a row goes on in another."""
        self._proposer.move(source, target)

    def draft_lengths(self, runner: Runner, sequences: Rows[Request]) -> list[int]:
        """How many tokens to draft for each sequence; where it is 0 for all, a plain step is as good."""
        is_native = native_draft(self._proposer, runner, sequences) is not None
        initial = InitialEstimate(
            max(sequence.n_left for sequence in sequences),
            self._proposer.bytes_per_step / runner.step_bytes(len(sequences)),
            _NATIVE_HOST_SECONDS if is_native else _HOST_SECONDS,
        )
        self._plan = self._policy.next(initial)
        draft_lengths = [min(self._plan.draft_length, sequence.n_left - 1) for sequence in sequences]
        self._may_draft = any(draft_lengths)
        return draft_lengths

    def record_steps(self, counts: Rows[int], seconds: float) -> None:
        """Plain steps gave each sequence so many tokens, as planned or because nothing was drafted."""
        self.rounds.n_plain_tokens += sum(counts)
        if self._plan.draft_length == 0:
            self._policy.record_steps(counts[0], seconds)
        elif self._may_draft:
            draft_length, each = self._plan.draft_length, seconds / counts[0]
            self._policy.record_rounds(draft_length, each, RoundStats(n_rounds=len(counts), n_sequences=len(counts)))

    def run(self, runner: Runner, sequences: Rows[Request], draft_lengths: Rows[int]) -> RoundOutput | None:
        """A round, or as many as two native models play by themselves in a moment; None where nothing was drafted."""
        draft = native_draft(self._proposer, runner, sequences)
        began = time.perf_counter()
        if draft is None:
            outcome = self._round(runner, sequences, draft_lengths)
        else:
            outcome = self._run_native(runner, draft, sequences, max(draft_lengths))
        if outcome is None:
            return None
        output, seconds = outcome
        host = max(0.0, time.perf_counter() - began - sum(seconds))  # all is done: its tokens are here
        self.rounds.draft_seconds += seconds[0]
        self.rounds.verify_seconds += seconds[1]
        self.rounds.sample_seconds += seconds[2]
        self.rounds.host_seconds += host
        n_rounds = output.stats.n_rounds / len(sequences)
        self._round_seconds = sum(seconds) / n_rounds
        # what a call costs beside its rounds is shared by as many as there will be in one
        most = min(MAX_ROUNDS, AHEAD_SECONDS / self._round_seconds)
        each_host = host / (n_rounds if draft is None else max(n_rounds, most))
        output.stats.n_sequences = len(sequences)
        self._policy.record_rounds(
            max(draft_lengths), self._round_seconds + each_host, output.stats, once=host - each_host * n_rounds
        )
        return output

    def _round(
        self, runner: Runner, sequences: Rows[Request], draft_lengths: Rows[int]
    ) -> tuple[RoundOutput, Seconds] | None:
        """Draft, verify and choose on the device, and only then look at what came of it."""
        device, contexts = runner.model.device, [sequence.next_draw for sequence in sequences]
        splits = Splits(device)
        with phase("draft"), runner.alone():
            proposals = self._proposer.propose(contexts, draft_lengths)
            drafted = [proposal.tokens.to(device, non_blocking=True) for proposal in proposals]
        if not any(map(len, drafted)):
            return None
        splits.mark()
        last = torch.split(to_device([context.generated[-1] for context in contexts], torch.int64, device), 1)
        output = RoundOutput(
            [], runner.step_bytes(len(contexts)) + self._plan.draft_length * self._proposer.bytes_per_step
        )
        fed = [torch.cat(each) for each in zip(last, drafted, strict=True)]
        needs_probs = not all(context.sampler.sampling.is_greedy for context in contexts)
        logits = runner.extend(fed, needs_probs=needs_probs)
        splits.mark()
        with phase("sample"), runner.alone():
            draft_probs = [proposal.probabilities for proposal in proposals]
            outcomes = [_verified(*each) for each in zip(logits, contexts, drafted, draft_probs, strict=True)]
            splits.mark()
            told = _fetch_outcomes(outcomes, drafted)
        for row, (sequence, (tokens, overlap)) in enumerate(zip(sequences, told, strict=True)):
            output.counts.append(_append_tokens(sequence, tokens, runner.model, logits[row]))
            self._count(output, len(drafted[row]), len(tokens) - 1, output.counts[-1], overlap)
            runner.truncate_to(row, sequence.prompt, sequence.generated)
        drafting, verifying, sampling = splits.seconds
        return output, (drafting, verifying, sampling)

    def _run_native(
        self, runner: Runner, draft: Runner, sequences: Rows[Request], draft_length: int
    ) -> tuple[RoundOutput, Seconds]:
        each = self._round_seconds or runner.guessed_seconds + draft_length * draft.guessed_seconds
        before = runner.step_bytes(len(sequences))
        n_left = max(sequence.n_left for sequence in sequences)
        native = run_rounds_native(
            runner, draft, sequences, round_limits(self._plan, n_left, int(AHEAD_SECONDS / each))
        )
        each_bytes = (before + runner.step_bytes(len(sequences))) // 2
        output = RoundOutput([0] * len(sequences), len(native.rounds) * each_bytes)
        for rounds in native.rounds:
            for row, (sequence, told) in enumerate(zip(sequences, rounds, strict=True)):
                n_given = _append_tokens(sequence, told.tokens, runner.model)
                output.counts[row] += n_given
                self._count(output, told.n_drafted, len(told.tokens) - 1, n_given, told.overlap)
                output.stats.uncertainty += told.uncertainty
        output.n_bytes += output.stats.n_drafted // len(sequences) * self._proposer.bytes_per_step
        return output, native.seconds

    def _count(self, output: RoundOutput, n_drafted: int, n_accepted: int, n_given: int, overlap: float) -> None:
        stats = output.stats
        stats.n_rounds += 1
        stats.n_drafted += n_drafted
        stats.n_accepted += n_accepted
        stats.n_verified += min(n_accepted + 1, n_drafted)
        self.rounds.add(n_drafted, n_accepted, n_given, overlap)


def _append_tokens(sequence: Request, tokens: Rows[int], model: Decoder, logits: Logits | None = None) -> int:
    """Let a sequence take tokens until it is over; returns how many it took, the end token with them."""
    for position, token in enumerate(tokens):
        if token == model.config.vocab_size:
            sequence.fail(NonFiniteLogitsError(model.dtype, f"after {sequence.n_tokens:,} tokens"))
            return position
        sequence.take(token)
        is_kept = len(sequence.generated) > len(sequence.logprobs)  # no end token
        if logits is not None and sequence.n_logprobs is not None and is_kept:
            sequence.logprobs.append(token_logprobs(logits.whole[position], token, sequence.n_logprobs))
        if sequence.finish_reason is not None:
            return position + 1
    return len(tokens)


def _verified(logits: Logits, context: SamplingContext, drafted: Tensor, q: Tensor | None) -> Verification:
    """The verification of one row, which has logits before each drafted token and after all; its draft drew from q."""
    device, n_drafted = drafted.device, len(drafted)
    draft_length = torch.full((1,), n_drafted, device=device)
    if context.sampler.sampling.is_greedy:
        return verify_greedy(most_probable(logits, context, drafted).unsqueeze(0), drafted.unsqueeze(0), draft_length)
    if q is None:
        q = torch.zeros(n_drafted, logits.vocab_size, device=device).scatter_(1, drafted.unsqueeze(-1), 1.0)
    return verify(
        distribution(logits, context, drafted).unsqueeze(0),
        q.to(device).unsqueeze(0),
        drafted.unsqueeze(0),
        draft_length,
        acceptance_uniforms=_uniforms([context.uniform(n, ACCEPTANCE) for n in range(n_drafted)], device),
        token_uniforms=_uniforms([context.uniform(n) for n in range(n_drafted + 1)], device),
    )


def _fetch_outcomes(outcomes: Rows[Verification], drafted: Rows[Tensor]) -> list[tuple[list[int], float]]:
    """The tokens that each row is given and its overlap, all fetched from the device at once."""
    # in float32 the number of a token is exact up to 16 million
    rows = [torch.cat([each.n_accepted, each.tokens, each.overlap]).float() for each in outcomes]
    fetched = torch.cat([*rows, *drafted]).tolist()
    told, position = [], 3 * len(outcomes)
    for row, tokens in enumerate(drafted):
        n_accepted, token, overlap = fetched[3 * row : 3 * row + 3]
        accepted = fetched[position : position + int(n_accepted)]
        told.append(([int(each) for each in (*accepted, token)], overlap))
        position += len(tokens)
    return told


def _uniforms(numbers: list[float], device: torch.device) -> Tensor:
    return to_device(numbers, widest(device), device).unsqueeze(0)
