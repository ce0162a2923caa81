"""Speculative decoding: rounds of one proposal and one verification, natively where both models can.

The output is lossless: under greedy decoding the same text as plain decoding, with sampling the same distribution. Each
row of a batch accepts as many tokens as its own verification allows, independent of the other rows.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import phase
from gptfast_cli.core.backends.cpu.rounds import NativeRounds, RoundLimits, RoundRow, run_rounds
from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.engine.request import Request
from gptfast_cli.core.engine.runner import AHEAD_SECONDS, Runner, sampling_params
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
from gptfast_cli.core.engine.speculative.verification import Rounds, Verification, verify, verify_greedy
from gptfast_cli.core.models.decoder import Decoder, Logits, NonFiniteLogitsError
from gptfast_cli.core.stopwatch import Splits, Stopwatch

_IN_ONE_PASS = 7  # drafted tokens verified in one read of the weights: TILE - 1, as the token before them is fed, too


def native_draft(proposer: Proposer, target: Runner, sequences: Sequence[Request]) -> Runner | None:
    """The draft's runner where both models can run rounds natively and no request needs logits; else None."""
    is_native = target.runs_ahead and all(sequence.wants_tokens_alone for sequence in sequences)
    return proposer.native_runner if is_native else None


def round_limits(plan: RoundPlan, n_left: int, n_rounds: int) -> RoundLimits:
    """Limits of one native call: 1 to `n_rounds` rounds, for sequences with at most `n_left` tokens left.

    With an uncertainty limit, a round may draft more than the average optimum while the draft is confident.
    """
    draft_length = plan.draft_length if math.isinf(plan.max_uncertainty) else max(plan.draft_length, _IN_ONE_PASS)
    return RoundLimits(max(1, min(n_rounds, plan.n_rounds)), min(draft_length, n_left - 1), plan.max_uncertainty)


def run_rounds_native(target: Runner, draft: Runner, sequences: Sequence[Request], limits: RoundLimits) -> NativeRounds:
    """Run rounds of sequences in the first rows of both runners, without updating the sequences.

    It stops after the round in which a sequence ends.
    """
    texts = [_text(row, sequence, draft) for row, sequence in enumerate(sequences)]
    stops = frozenset().union(*(sequence.limits.stop_ids for sequence in sequences))
    longest = max(text.n_held + len(text.rest) for text in texts) + (limits.n_rounds + 1) * (limits.draft_length + 1)
    with target.alone():
        native = run_rounds(
            target.handle(len(texts), longest), draft.handle(len(texts), longest), texts, limits, tuple(stops)
        )
    for row, (text, n_held) in enumerate(zip(texts, native.n_held, strict=True)):
        emitted = [token for each in native.rounds for token in each[row].tokens]
        target.append(row, [text.rest[-1], *emitted[:-1]])
        draft.append(row, [*text.rest, *emitted][: n_held - text.n_held])
    return native


def _text(row: int, sequence: Request, draft: Runner) -> RoundRow:
    rest, sampler = draft.truncate_to(row, sequence.prompt, sequence.generated), sequence.sampler
    return RoundRow(
        row, sequence.n_left, draft.n_held(row), rest, sampler.seed, sampler.stream, sampling_params(sequence.next_draw)
    )


Seconds = tuple[float, float, float]  # draft, verify, sample

_HOST_SECONDS = 300e-6  # first guess of a round's time beside the models, run step by step
_NATIVE_HOST_SECONDS = 25e-6  # the same, for the four rounds of a trial, which are two native calls


@dataclass(slots=True)
class RoundOutput:
    """Result of a step or of rounds: number of tokens of each sequence, bytes read, and round statistics."""

    counts: list[int]
    n_bytes: int
    stats: RoundStats = field(default_factory=RoundStats)


class Speculation:
    """A proposer and its draft-length policy; row n of the target's runner is row n of the proposer."""

    def __init__(
        self,
        proposer: Proposer,
        policy: DraftLengthPolicy,
        *,
        drafting: DraftOptions | None = None,
        load_seconds: float = 0.0,
        is_replicated: bool = False,
        ahead_seconds: float = AHEAD_SECONDS,
    ) -> None:
        """`is_replicated`: each rank of the target has the whole proposer, and all ranks propose the same tokens.

        ahead_seconds: time budget of the rounds of one native call
        """
        self.rounds = Rounds()
        self.drafting = drafting  # the options that it was opened with
        self.load_seconds = load_seconds  # time to load the proposer
        self.is_replicated = is_replicated
        self._ahead_seconds = ahead_seconds
        self._proposer = proposer
        self._policy = policy
        self._plan = RoundPlan(0, 1)
        self._may_draft = False  # some sequence has more than one token left
        self._round_seconds: float | None = None  # time of the last round

    def begin(self, runner: Runner, row: int, prompt: Sequence[int], n_tokens: int) -> int:
        """Prefill the draft with up to `n_tokens` of a prompt; returns how many are left."""
        watch = Stopwatch(runner.model.device)
        with watch, phase("draft"), runner.alone():
            n_left = self._proposer.begin(row, prompt, n_tokens)
        self.rounds.draft_prefill_seconds += watch.seconds
        return n_left

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another row."""
        self._proposer.move(source, target)

    def draft_lengths(self, runner: Runner, sequences: Sequence[Request]) -> list[int]:
        """Draft length for each sequence; all 0 asks for a plain step."""
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

    def record_steps(self, counts: Sequence[int], seconds: float) -> None:
        """Record plain steps, taken as planned or because nothing was drafted; `counts`: tokens of each sequence."""
        self.rounds.n_plain_tokens += sum(counts)
        if self._plan.draft_length == 0:
            self._policy.record_steps(counts[0], seconds)
        elif self._may_draft:
            draft_length, each = self._plan.draft_length, seconds / counts[0]
            self._policy.record_rounds(draft_length, each, RoundStats(n_rounds=len(counts), n_sequences=len(counts)))

    def run(self, runner: Runner, sequences: Sequence[Request], draft_lengths: Sequence[int]) -> RoundOutput | None:
        """Run one round, or with native models the rounds that its time budget allows; None if nothing was drafted."""
        draft = native_draft(self._proposer, runner, sequences)
        began = time.perf_counter()
        if draft is None:
            outcome = self._round(runner, sequences, draft_lengths)
        else:
            outcome = self._run_native(runner, draft, sequences, max(draft_lengths))
        if outcome is None:
            return None
        output, seconds = outcome
        host = max(0.0, time.perf_counter() - began - sum(seconds))  # the device is idle: the tokens were fetched
        self.rounds.draft_seconds += seconds[0]
        self.rounds.verify_seconds += seconds[1]
        self.rounds.sample_seconds += seconds[2]
        self.rounds.host_seconds += host
        n_rounds = output.stats.n_rounds / len(sequences)
        self._round_seconds = sum(seconds) / n_rounds
        # the overhead of a native call is shared by all rounds of a full-length call
        most = min(MAX_ROUNDS, self._ahead_seconds / self._round_seconds)
        each_host = host / (n_rounds if draft is None else max(n_rounds, most))
        output.stats.n_sequences = len(sequences)
        self._policy.record_rounds(
            max(draft_lengths), self._round_seconds + each_host, output.stats, once=host - each_host * n_rounds
        )
        return output

    def _round(
        self, runner: Runner, sequences: Sequence[Request], draft_lengths: Sequence[int]
    ) -> tuple[RoundOutput, Seconds] | None:
        """Draft, verify and sample on the device; one transfer to the host at the end."""
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
            fetched = _fetch_outcomes(outcomes, drafted)
        for row, (sequence, (tokens, overlap)) in enumerate(zip(sequences, fetched, strict=True)):
            output.counts.append(_append_tokens(sequence, tokens, runner.model, logits[row]))
            self._count(output, len(drafted[row]), len(tokens) - 1, output.counts[-1], overlap)
            runner.truncate_to(row, sequence.prompt, sequence.generated)
        drafting, verifying, sampling = splits.seconds
        return output, (drafting, verifying, sampling)

    def _run_native(
        self, runner: Runner, draft: Runner, sequences: Sequence[Request], draft_length: int
    ) -> tuple[RoundOutput, Seconds]:
        each = self._round_seconds or runner.guessed_seconds + draft_length * draft.guessed_seconds
        before = runner.step_bytes(len(sequences))
        n_left = max(sequence.n_left for sequence in sequences)
        native = run_rounds_native(
            runner, draft, sequences, round_limits(self._plan, n_left, int(self._ahead_seconds / each))
        )
        each_bytes = (before + runner.step_bytes(len(sequences))) // 2
        output = RoundOutput([0] * len(sequences), len(native.rounds) * each_bytes)
        for rounds in native.rounds:
            for row, (sequence, round_output) in enumerate(zip(sequences, rounds, strict=True)):
                n_given = _append_tokens(sequence, round_output.tokens, runner.model)
                output.counts[row] += n_given
                self._count(output, round_output.n_drafted, len(round_output.tokens) - 1, n_given, round_output.overlap)
                output.stats.uncertainty += round_output.uncertainty
        output.n_bytes += output.stats.n_drafted // len(sequences) * self._proposer.bytes_per_step
        return output, native.seconds

    def _count(self, output: RoundOutput, n_drafted: int, n_accepted: int, n_given: int, overlap: float) -> None:
        stats = output.stats
        stats.n_rounds += 1
        stats.n_drafted += n_drafted
        stats.n_accepted += n_accepted
        stats.n_verified += min(n_accepted + 1, n_drafted)
        self.rounds.add(n_drafted, n_accepted, n_given, overlap)


def _append_tokens(sequence: Request, tokens: Sequence[int], model: Decoder, logits: Logits | None = None) -> int:
    """Append tokens to a sequence until it ends; returns their number, end token included."""
    for position, token in enumerate(tokens):
        if token == model.config.vocab_size:
            sequence.fail(NonFiniteLogitsError(model.dtype, f"after {sequence.n_tokens:,} tokens"))
            return position
        sequence.take(token)
        is_kept = len(sequence.generated) > len(sequence.logprobs)  # an end token is not kept
        if logits is not None and sequence.n_logprobs is not None and is_kept:
            sequence.logprobs.append(token_logprobs(logits.whole[position], token, sequence.n_logprobs))
        if sequence.finish_reason is not None:
            return position + 1
    return len(tokens)


def _verified(logits: Logits, context: SamplingContext, drafted: Tensor, q: Tensor | None) -> Verification:
    """Verify one row; `logits` are [n_drafted + 1, vocab], q [n_drafted, vocab], None for a certain proposal."""
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


def _fetch_outcomes(outcomes: Sequence[Verification], drafted: Sequence[Tensor]) -> list[tuple[list[int], float]]:
    """Emitted tokens and overlap of each row, fetched from the device in one transfer."""
    # float32 represents token ids exactly up to 2**24
    rows = [torch.cat([each.n_accepted, each.tokens, each.overlap]).float() for each in outcomes]
    fetched = torch.cat([*rows, *drafted]).tolist()
    emitted, position = [], 3 * len(outcomes)
    for row, tokens in enumerate(drafted):
        n_accepted, token, overlap = fetched[3 * row : 3 * row + 3]
        accepted = fetched[position : position + int(n_accepted)]
        emitted.append(([int(each) for each in (*accepted, token)], overlap))
        position += len(tokens)
    return emitted


def _uniforms(numbers: list[float], device: torch.device) -> Tensor:
    return to_device(numbers, widest(device), device).unsqueeze(0)
