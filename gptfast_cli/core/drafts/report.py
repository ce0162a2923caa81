"""What is known about drafts for a target: the result of `gptfast speculate`, as it is shown, written and kept.

Speed-ups are ratios over plain decoding of the same target on the same machine, of no dimension; seconds are medians.
Lists stop where a run was interrupted; what was never measured is None.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.texts import FailedPrompt

Basis: TypeAlias = Literal["on-policy", "proxy", "assumed"]
"""What agreement was measured on: text of the target itself, given text, or nothing: it was assumed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, and where it lies in 95 of 100 bootstrap samples, taken by prompt."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Noise:
    """How far apart equal runs of plain decoding were: the second of two neighbours over the first, in seconds.

    low, high: the 10th and the 90th percentile of these ratios, without dimension
    """

    low: float
    high: float

    @property
    def is_high(self) -> bool:
        """Whether it is large enough to be taken for a gain, or to hide one."""
        return self.high > 1.1 * self.low

    @property
    def spread(self) -> float:
        """high / low - 1."""
        return self.high / self.low - 1


@dataclass(frozen=True, slots=True)
class Slice:
    """Agreement over a part of the texts; `name` is such as `stories`, or `tokens 65-128` of the context."""

    kind: Literal["category", "context"]
    name: str
    n_tokens: int
    alpha: Interval


@dataclass(frozen=True, slots=True)
class PositionAcceptance:
    """How often the n-th drafted token of a round of the deepest k is accepted.

    conditional:   where all those before it were; None where that never happens
    unconditional: of all rounds that draft it
    """

    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class RoundCost:
    """Seconds of one round of a whole batch, by its parts."""

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
    """A depth at a batch size.

    predicted:    speed-up from agreement and costs: tokens a round x seconds of a plain step / seconds of a round
    measured:     the same of real runs that took turns with plain ones
    error:        predicted / measured - 1, where predicted is of the very prompts that were run
    ceiling:      speed-up of a draft that is always right, at the same costs
    break_even:   alpha, the same at every token, under which it would lose; None where even a perfect draft would
    token_seconds: predicted, between tokens of one sequence; tok_s: predicted, of all sequences together
    gbps:         that a round reads of weights, keys and values of both models, in GB/s with GB = 1e9 bytes
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

    alpha:  mean over positions of the sum of min(p, q); tau: tokens per round, by k. NaN where nothing was ever drafted
    acceptance_by_position: of rounds of the deepest k
    load_s, prefill_s: seconds to load it, and to feed it the prompt of one sequence; part of no speed-up
    n_bytes: that one drafted token reads, but for keys and values
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
    """Plain decoding at a batch size: seconds of a step, tokens a second of all sequences together, its memory reads.

    gbps: in GB/s with GB = 1e9 bytes; mbu: 0..1, of the bandwidth measured in the same run
    """

    temperature: float
    batch_size: int
    step_seconds: float
    tok_s: float
    gbps: float
    mbu: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use for a batch size at a temperature; draft, k and speedup are None where no draft gains for sure.

    is_unclear: no draft gains for sure, but one may: its interval is wide or spans 1
    """

    temperature: float
    batch_size: int
    draft: str | None
    k: int | None
    speedup: Interval | None
    is_unclear: bool = False


@dataclass(frozen=True, slots=True)
class ValidationRun:
    """A cell that was run for real; `draft` None and k 0 is plain decoding against itself.

    predicted: of the prompts that were run, `n_prompts` of them
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
    """That speculation with a draft gave what the target alone gives.

    n_texts, n_equal: greedy texts, and those of them that were equal token by token
    n_draws:          texts drawn with the draft, and as many without
    chi_square, degrees, p_value: of the difference between the counts of their tokens; a p-value under 0.0001 is a
                      fault
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
        """Whether nothing was found that speaks against it."""
        return self.n_equal == self.n_texts and self.p_value >= 1e-4


@dataclass(frozen=True, slots=True)
class DraftReport:
    """All of it; `verdict` says what to use, in one line for each temperature, after one on noise where there is much.

    n_bytes:       of the target's weights, on each rank where several have it, as are all bytes here
    drafts:        one for each draft and temperature
    median_error:  median of the proofs' errors, without their signs and without plain decoding against itself
    bandwidth_gbps: median of the reads of memory, in GB/s
    prefill_s:     seconds that the target takes to feed the prompt of one sequence
    noise:         of the machine, throughout the run; None where it was not measured
    n_prompts:     that it is about; failed_prompts: that nothing of it is about
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
        """Why prompts failed, and the names of those with that reason."""
        names: dict[str, list[str]] = {}
        for each in self.failed_prompts:
            names.setdefault(each.reason, []).append(each.name)
        return names

    @property
    def is_noisy(self) -> bool:
        """Whether equal runs were so far apart that no advice should rest on these figures."""
        return self.noise is not None and self.noise.is_high
