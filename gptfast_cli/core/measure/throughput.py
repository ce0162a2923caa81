"""The speed of a generation: times are collected around finished work, and each number is computed in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptfast_cli.core.decode.generator import Admission, Stride


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

    def add_admission(self, admission: Admission) -> None:
        """Count the beginning of a sequence."""
        self.prefill_tokens += admission.n_fed
        self.prefill_seconds += admission.prefill_seconds
        self.choosing_seconds += admission.first_token_seconds
        if self.ttft_seconds is None:
            self.ttft_seconds = admission.prefill_seconds + admission.first_token_seconds

    def add_stride(self, stride: Stride) -> None:
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
