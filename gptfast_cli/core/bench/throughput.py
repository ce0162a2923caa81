"""Throughput and latency of a generation, of each rank, and of speculation."""

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
    """Throughput and latency of a generation; None if nothing was measured.

    decode_tok_s:    tokens after the first ÷ time after the first, for one sequence
    aggregate_tok_s: the same for all sequences together
    ttft_s:          time to first token, from the start of prefill
    tpot_*_s:        time per output token after the first: median and 95th percentile
    decode_gbps:     bytes read by decode steps ÷ their time, GB = 1e9 bytes
    mbu:             decode_gbps ÷ measured bandwidth
    compile_s:       compile time, not part of the others
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
    """Accumulates the timings of a generation."""

    compile_seconds: float | None = None  # before the first prefill
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    choosing_seconds: float = 0.0  # sampling of first tokens
    ttft_seconds: float | None = None  # of the first sequence
    token_seconds: list[float] = field(default_factory=list)  # of every token after its sequence's first
    sequence_tokens: float = 0.0  # after the first, of one sequence: mean over the batch
    decode_seconds: float = 0.0
    decode_bytes: int = 0

    def add(self, output: StepOutput) -> None:
        """Count a step of the engine: a prompt that it completed, or what it decoded."""
        if output.prefill is not None:
            self.add_prefill(output.prefill)
        elif output.advanced:
            self.add_step(output)

    def add_prefill(self, output: PrefillOutput) -> None:
        """Add the prefill and the first token of a sequence."""
        self.prefill_tokens += output.n_fed
        self.prefill_seconds += output.prefill_seconds
        self.choosing_seconds += output.first_token_seconds
        if self.ttft_seconds is None:
            self.ttft_seconds = output.prefill_seconds + output.first_token_seconds

    def add_step(self, output: StepOutput) -> None:
        """Add decode steps or rounds."""
        for count in output.counts:
            self.token_seconds += [output.seconds / count] * count if count else []
        self.sequence_tokens += output.n_tokens / len(output.advanced)
        self.decode_seconds += output.seconds
        self.decode_bytes += output.n_bytes

    @property
    def seconds(self) -> float:
        """Total time of prefill, sampling and decode."""
        return self.prefill_seconds + self.choosing_seconds + self.decode_seconds

    def metrics(self, *, load_seconds: float, peak_memory_bytes: int) -> Metrics:
        """Summarize the timings."""
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
    """Nearest-rank percentile; None without values."""
    if not values:
        return None
    return sorted(values)[-(-len(values) * percent // 100) - 1]


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Numbers of one rank.

    decode_gbps:      bytes of its shard read by decode steps ÷ their time, GB = 1e9 bytes
    collective_share: share of prefill and decode time (draft included) spent in collectives, waiting for the slowest
                      rank included; on a GPU only until they are queued, without those of compiled steps
    """

    rank: int
    peak_memory_bytes: int
    decode_gbps: float | None
    collective_share: float | None


def rank_numbers(
    group: ProcessGroup, metrics: Metrics, *, seconds: float, began: float
) -> tuple[RankNumbers, ...] | None:
    """Numbers of all ranks, on every rank; None for a single rank.

    seconds: time of prefill and decode
    began:   value of `group.seconds` before them
    """
    if group.size == 1:
        return None
    share = (group.seconds - began) / seconds if seconds else None
    own = RankNumbers(group.rank, metrics.peak_memory_bytes, metrics.decode_gbps, share)
    return tuple(RankNumbers(**each) for each in group.exchange(asdict(own)))


@dataclass(frozen=True, slots=True)
class RankSubset:
    """The ranks that share a model, out of all ranks of a measurement.

    everyone:  group of all ranks
    group:     group of the sharing ranks; None on the other ranks, which wait
    size:      number of sharing ranks
    n_threads: PyTorch threads of each; None leaves them unchanged
    """

    everyone: ProcessGroup = ALONE
    group: ProcessGroup | None = ALONE
    size: int = 1
    n_threads: int | None = None

    def threads(self) -> AbstractContextManager[None]:
        """Set the number of PyTorch threads for a block."""
        return nullcontext() if self.n_threads is None else torch_threads(self.n_threads)


ALL_ALONE: Final = RankSubset()


def rank_subset_of(everyone: ProcessGroup, size: int, n_threads: int | None) -> RankSubset:
    """The first `size` ranks, with `n_threads` each; None divides the cores of a machine among its ranks."""
    of_all = torch.get_num_threads() * everyone.n_here
    own = max(1, min(of_all, computing_cpus()) // min(size, everyone.n_here))
    return RankSubset(everyone, everyone.first(size), size, own if n_threads is None else n_threads)


def medians(times: Sequence[tuple[RankNumbers, ...]]) -> tuple[RankNumbers, ...]:
    """Summarize repetitions for each rank: maximum memory, medians of the rest."""
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
    """Acceptance rate at one position of a round.

    conditional:   share of the rounds that accepted all tokens before it
    unconditional: share of all rounds that drafted a token there
    """

    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """Rounds of all sequences together.

    k:                  draft length; None if it was adaptive
    alpha:              mean over verified tokens of sum(min(p, q)), independent of k
    tau:                tokens per round, bonus token included
    accepted_histogram: number of rounds by accepted tokens
    acceptance:         by position
    shares:             of the time of rounds: draft, verify, sample, host; they sum to 1
    n_plain_tokens:     emitted by plain steps, with an adaptive draft length of 0 or an empty proposal
    replicated:         each rank held a replica of a draft that could not be sharded
    draft_load_s, draft_prefill_s: seconds of the draft before the first round, not part of the shares
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
    """Summarize the speculation of a generation; None for plain decoding."""
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
