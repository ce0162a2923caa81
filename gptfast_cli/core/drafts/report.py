"""Result of `gptfast speculate`: what is known about drafts for a target.

Speed-ups are ratios to plain decoding of the same target on the same machine, without dimension; seconds are medians.
After an interrupt, lists hold what was measured; what was not measured is None.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.texts import FailedPrompt

Basis: TypeAlias = Literal["on-policy", "proxy", "assumed"]
"""What acceptance is based on: text sampled by the target, completions from a file (proxy), or an assumed alpha."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % bootstrap interval over prompts; for real runs their median, minimum and maximum."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Spread of equal runs of plain decoding: the ratio of consecutive timings.

    low, high: 10th and 90th percentile of the ratios
    """

    low: float
    high: float

    @property
    def is_high(self) -> bool:
        """Whether noise exceeds 10 %: it can look like a gain, or hide one."""
        return self.high > 1.1 * self.low

    @property
    def spread(self) -> float:
        """high / low - 1."""
        return self.high / self.low - 1


@dataclass(frozen=True, slots=True)
class Slice:
    """alpha of a part of the texts; `name` is a category such as `stories`, or a range such as `tokens 65-128`."""

    kind: Literal["category", "context"]
    name: str
    n_tokens: int
    alpha: Interval


@dataclass(frozen=True, slots=True)
class PositionAcceptance:
    """Acceptance rate at one position of rounds with the largest k.

    conditional:   P(accepted | all tokens before it were accepted); None if that never happens
    unconditional: P(accepted), over all rounds that drafted a token there
    """

    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class RoundCost:
    """Seconds of one round of a whole batch, by part."""

    draft: float
    verify: float
    sample: float
    host: float

    @property
    def total(self) -> float:
        """Seconds of the round."""
        return self.draft + self.verify + self.sample + self.host


@dataclass(frozen=True, slots=True)
class GridCell:
    """One draft length k at one batch size.

    predicted:     speed-up: tokens per round * seconds of a plain step / seconds of a round
    measured:      speed-up of real runs, interleaved with plain ones
    error:         predicted / measured - 1, with the prediction for the prompts that were run
    ceiling:       speed-up of a perfect draft (alpha = 1) at the same costs
    break_even:    constant alpha with speed-up 1; None if even a perfect draft is slower than plain decoding
    token_seconds: predicted time between tokens of one sequence
    tok_s:         predicted tokens per second of all sequences
    gbps:          weights, keys and values of both models read by a round, GB/s with GB = 1e9 bytes
    """

    k: int
    batch_size: int
    cost: RoundCost
    predicted: Interval
    ceiling: float
    break_even: float | None
    token_seconds: float
    tok_s: float
    gbps: float
    measured: Interval | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class DraftResult:
    """A draft at one temperature.

    alpha:             mean over positions of sum(min(p, q)); NaN if nothing was drafted
    tau:               tokens per round, by k; NaN if nothing was drafted
    acceptance_by_position: of rounds with the largest k
    load_s, prefill_s: seconds to load the draft, and to prefill one sequence; not part of a speed-up
    n_bytes:           weight bytes read per drafted token
    """

    draft: str
    temperature: float
    basis: Basis
    n_tokens: int
    alpha: Interval
    tau: dict[int, Interval]
    acceptance_by_position: tuple[PositionAcceptance, ...]
    slices: tuple[Slice, ...]
    grid: tuple[GridCell, ...]
    n_params: int
    n_bytes: int
    load_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True)
class PlainDecoding:
    """Plain decoding at a batch size.

    tok_s: tokens per second of all sequences
    gbps:  bytes read, GB/s with GB = 1e9 bytes
    mbu:   gbps / bandwidth measured in the same run, 0..1
    """

    temperature: float
    batch_size: int
    step_seconds: float
    tok_s: float
    gbps: float
    mbu: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use at a temperature and batch size; draft, k and speedup are None if no draft has a clear gain.

    is_unclear: some draft may gain, but its interval is wide or spans 1
    """

    temperature: float
    batch_size: int
    draft: str | None
    k: int | None
    speedup: Interval | None
    is_unclear: bool = False


@dataclass(frozen=True, slots=True)
class ValidationRun:
    """A cell checked by real runs; `draft` None with k 0 is plain decoding against itself.

    n_prompts: prompts that were run
    predicted: speed-up predicted for these prompts
    """

    draft: str | None
    temperature: float
    k: int
    batch_size: int
    n_prompts: int
    predicted: float
    measured: Interval
    error: float


@dataclass(frozen=True, slots=True)
class LosslessnessCheck:
    """Comparison of speculation with plain decoding of the target.

    n_texts, n_equal: greedy texts, and those that were equal token by token
    n_draws:          texts sampled with the draft, and as many without
    chi_square, degrees, p_value: test of the difference of their token counts; p < 0.0001 is a failure
    """

    draft: str
    n_texts: int
    n_equal: int
    n_draws: int
    chi_square: float
    degrees: int
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether the check passed."""
        return self.n_equal == self.n_texts and self.p_value >= 1e-4


@dataclass(frozen=True, slots=True)
class DraftReport:
    """The whole report.

    verdict:       the recommendation as text: one line for each temperature, after a warning where noise is high
    n_bytes:       of the target's weights; all bytes are those of one rank
    drafts:        one for each draft and temperature
    median_error:  median absolute error of the validation runs with a draft
    bandwidth_gbps: median measured read bandwidth, GB/s
    prefill_s:     seconds of the target's prefill of one sequence
    noise:         of the machine during the run; None if it was not measured
    n_prompts:     prompts that were judged; failed_prompts: those left out
    """

    environment: Environment
    target: str
    scheme: str
    n_params: int
    n_bytes: int
    n_prompts: int
    max_new_tokens: int
    seed: int
    prefill_s: float
    bandwidth_gbps: float
    drafts: tuple[DraftResult, ...]
    plain: tuple[PlainDecoding, ...]
    recommendations: tuple[Recommendation, ...]
    validation_runs: tuple[ValidationRun, ...]
    losslessness_checks: tuple[LosslessnessCheck, ...]
    median_error: float | None
    verdict: str
    noise: Noise | None = None
    is_interrupted: bool = False
    failed_prompts: tuple[FailedPrompt, ...] = ()

    @property
    def failures(self) -> dict[str, list[str]]:
        """Names of the failed prompts by reason."""
        names: dict[str, list[str]] = {}
        for each in self.failed_prompts:
            names.setdefault(each.reason, []).append(each.name)
        return names

    @property
    def is_noisy(self) -> bool:
        """Whether noise was too high to rely on these figures."""
        return self.noise is not None and self.noise.is_high
