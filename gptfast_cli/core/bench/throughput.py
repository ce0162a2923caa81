"""Tokens each second of a run, of each rank, and of speculation."""

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Final

import torch

from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import torch_threads
from gptfast_cli.core.engine.engine import PrefillOutput, StepOutput
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.engine.speculative.verification import Position, Rounds
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup


@dataclass(frozen=True, slots=True)
class Metrics:
    """Each number stands for itself; None where there was nothing to measure, or no means to.

    decode_tok_s: tokens after the first ÷ time after the first, of one sequence; aggregate_tok_s: of all together
    ttft_s:       from the start of prefill to the first token; tpot: time for each token after the first
    compile_s:    before all of these, and part of none
    decode_gbps:  bytes that the steps read ÷ their time, in GB = 1e9 bytes; mbu: that ÷ the measured bandwidth
    """

    prefill_tok_s: float | None
    ttft_s: float | None
    decode_tok_s: float | None
    aggregate_tok_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    decode_gbps: float | None
    mbu: float | None
    peak_memory_bytes: int
    load_s: float
    compile_s: float | None


@dataclass(slots=True)
class Timings:
    """Collects the times of a generation."""

    compile_seconds: float | None = None  # spent before the first prefill
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    choosing_seconds: float = 0.0  # of first tokens
    ttft_seconds: float | None = None  # of the first sequence
    token_seconds: list[float] = field(default_factory=list)  # of every token after a first one
    sequence_tokens: float = 0.0  # after the first, of one sequence: the mean of those under way
    decode_seconds: float = 0.0
    decode_bytes: int = 0

    def add(self, output: StepOutput) -> None:
        """Count a step of the engine: a prompt that it completed, or what it decoded."""
        if output.prefill is not None:
            self.add_prefill(output.prefill)
        elif output.advanced:
            self.add_step(output)

    def add_prefill(self, admission: PrefillOutput) -> None:
        """Count the beginning of a sequence."""
        self.prefill_tokens += admission.n_fed
        self.prefill_seconds += admission.prefill_seconds
        self.choosing_seconds += admission.first_token_seconds
        if self.ttft_seconds is None:
            self.ttft_seconds = admission.prefill_seconds + admission.first_token_seconds

    def add_step(self, stride: StepOutput) -> None:
        """Count steps or a round after the first token: what they gave, took and read."""
        for count in stride.counts:
            self.token_seconds += [stride.seconds / count] * count if count else []
        self.sequence_tokens += stride.n_tokens / len(stride.advanced)
        self.decode_seconds += stride.seconds
        self.decode_bytes += stride.n_bytes

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.prefill_seconds + self.choosing_seconds + self.decode_seconds

    def metrics(self, *, load_seconds: float, peak_memory_bytes: int) -> Metrics:
        """The numbers."""
        return Metrics(
            prefill_tok_s=_rate(self.prefill_tokens, self.prefill_seconds),
            ttft_s=self.ttft_seconds,
            decode_tok_s=_rate(self.sequence_tokens, self.decode_seconds),
            aggregate_tok_s=_rate(len(self.token_seconds), self.decode_seconds),
            tpot_p50_s=_percentile(self.token_seconds, 50),
            tpot_p95_s=_percentile(self.token_seconds, 95),
            decode_gbps=_rate(self.decode_bytes / 1e9, self.decode_seconds),
            mbu=None,
            peak_memory_bytes=peak_memory_bytes,
            load_s=load_seconds,
            compile_s=self.compile_seconds,
        )


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount and seconds else None


def _percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    if not values:
        return None
    return sorted(values)[-(-len(values) * percent // 100) - 1]


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Of one rank.

    decode_gbps:      bytes of its own part that the steps read ÷ their time, in GB = 1e9 bytes
    collective_share: 0..1, of the time of prefill and decode, the draft's with them, spent in collectives: their work,
                      and waiting for the slowest rank; on a GPU the time until they were queued, and without those of
                      compiled steps
    """

    rank: int
    peak_memory_bytes: int
    decode_gbps: float | None
    collective_share: float | None


def rank_numbers(
    group: ProcessGroup, metrics: Metrics, *, seconds: float, began: float
) -> tuple[RankNumbers, ...] | None:
    """Those of all ranks, for each of them to know; None where there is one.

    `seconds` are those of prefill and decode; `began` is what `group.seconds` was before them.
    """
    if group.size == 1:
        return None
    share = (group.seconds - began) / seconds if seconds else None
    own = RankNumbers(group.rank, metrics.peak_memory_bytes, metrics.decode_gbps, share)
    return tuple(RankNumbers(**each) for each in group.exchange(asdict(own)))


@dataclass(frozen=True, slots=True)
class RankSubset:
    """The ranks that a model is dealt out to, of all `everyone` that take part in a measurement.

    group:  those that do the work; None on a rank that stands by meanwhile
    size:      how many they are
    n_threads: of PyTorch, in each; None leaves them as they are
    """

    everyone: ProcessGroup = ALONE
    group: ProcessGroup | None = ALONE
    size: int = 1
    n_threads: int | None = None

    def threads(self) -> AbstractContextManager[None]:
        """With the threads that it works with, for the block."""
        return nullcontext() if self.n_threads is None else torch_threads(self.n_threads)


ALL_ALONE: Final = RankSubset()


def rank_subset_of(everyone: ProcessGroup, size: int, n_threads: int | None) -> RankSubset:
    """The first so many ranks, with so many threads each; None divides the cores of a machine among those on it."""
    of_all = torch.get_num_threads() * everyone.n_here
    own = max(1, min(of_all, computing_cpus()) // min(size, everyone.n_here))
    return RankSubset(everyone, everyone.first(size), size, own if n_threads is None else n_threads)


def medians(times: Sequence[tuple[RankNumbers, ...]]) -> tuple[RankNumbers, ...]:
    """The numbers of each rank, of several times: the most memory, and medians of the rest."""
    return tuple(
        RankNumbers(
            rank=each[0].rank,
            peak_memory_bytes=max(numbers.peak_memory_bytes for numbers in each),
            decode_gbps=_median([numbers.decode_gbps for numbers in each]),
            collective_share=_median([numbers.collective_share for numbers in each]),
        )
        for each in zip(*times, strict=True)
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often the n-th drafted token of a round was accepted.

    conditional:   of the rounds in which all those before it were
    unconditional: of all rounds that drafted it
    """

    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """Rounds of all sequences together.

    k:                  tokens drafted in a round; None where it was adapted
    alpha:              mean of the sum of min(p, q) over verified tokens, of no dimension and independent of k
    tau:                tokens per round, the one after the accepted ones with them
    accepted_histogram: rounds by how many drafted tokens they kept
    shares:             of the time of rounds: draft, verify, sample, host; they sum to 1
    n_plain_tokens:     given by steps without a draft, where the depth was adapted to 0
    replicated:         each rank of the target had all of a draft that could not be dealt out
    draft_load_s, draft_prefill_s: seconds of the draft before the first round, part of none of the shares
    """

    draft: str
    k: int | None
    rounds: int
    alpha: float | None
    tau: float | None
    accepted_histogram: tuple[int, ...]
    acceptance: tuple[Acceptance, ...]
    shares: dict[str, float]
    n_plain_tokens: int
    replicated: bool
    draft_load_s: float
    draft_prefill_s: float


def speculation_report(speculation: Speculation | None) -> SpeculationReport | None:
    """The report of a generation; None where nothing was drafted for it."""
    if speculation is None or speculation.drafting is None:
        return None
    drafting, rounds = speculation.drafting, speculation.rounds
    return SpeculationReport(
        draft=drafting.draft,
        k=drafting.draft_length,
        rounds=rounds.n_rounds,
        alpha=rounds.alpha,
        tau=rounds.tau,
        accepted_histogram=tuple(rounds.histogram),
        acceptance=tuple(map(_acceptance, rounds.positions)),
        shares=_shares(rounds),
        n_plain_tokens=rounds.n_plain_tokens,
        replicated=speculation.is_replicated,
        draft_load_s=speculation.load_seconds,
        draft_prefill_s=rounds.draft_prefill_seconds,
    )


def _acceptance(position: Position) -> Acceptance:
    conditional = position.n_accepted / position.n_verified if position.n_verified else None
    return Acceptance(conditional, position.n_accepted / position.n_drafted)


def _shares(rounds: Rounds) -> dict[str, float]:
    seconds = {
        "draft": rounds.draft_seconds,
        "verify": rounds.verify_seconds,
        "sample": rounds.sample_seconds,
        "host": rounds.host_seconds,
    }
    return {part: each / rounds.seconds for part, each in seconds.items()} if rounds.seconds else {}
