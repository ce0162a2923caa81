"""Predicted speed-ups with intervals, from acceptance probabilities and measured costs.

A text of T tokens takes rounds(k) rounds and plain(k) plain steps (see `acceptance.expected`). With the costs of a
round and of a plain step at batch size B,

    S(k, B) = T * step(B) / (rounds(k) * round(k, B) + plain(k) * step(B))

Without plain steps this is tau_k * step / round. Intervals are bootstrapped (Efron 1979) over prompts, the same samples
for every draft, and over repetitions of the costs.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gptfast_cli.core.drafts.acceptance import AcceptanceProbs, Expected, expected
from gptfast_cli.core.drafts.costs import CostCell, Costs
from gptfast_cli.core.drafts.report import GridCell, Interval, PositionAcceptance, Slice
from gptfast_cli.core.drafts.texts import TargetText
from gptfast_cli.core.engine.engine import MAX_UNDRAFTED
from gptfast_cli.core.engine.runner import AHEAD_SECONDS

_SAMPLES = 1000
_CONTEXT_SLICES = 3


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Bootstrap samples: count of each prompt, [samples + 1, prompts] float64; the first sample is the data itself."""

    weights: Tensor
    generator: torch.Generator

    @classmethod
    def of(cls, n_prompts: int, seed: int) -> "Bootstrap":
        """Samples of `n_prompts` prompts; the same seed gives the same samples."""
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        drawn = torch.randint(n_prompts, (_SAMPLES, n_prompts), generator=generator)
        counts = torch.zeros(_SAMPLES, n_prompts).scatter_add_(1, drawn, torch.ones(_SAMPLES, n_prompts))
        return cls(torch.cat([torch.ones(1, n_prompts), counts]).double(), generator)

    def ratio(self, above: Tensor, below: Tensor) -> Tensor:
        """sum(above) / sum(below) in each sample, for counts of shape [prompts]."""
        return (self.weights @ above) / (self.weights @ below)

    def repetitions(self, values: Sequence[float]) -> Tensor:
        """Median of the repetitions in each sample, [samples + 1]; the first is that of the data."""
        measured = torch.tensor(values, dtype=torch.float64)
        drawn = torch.randint(len(measured), (_SAMPLES, len(measured)), generator=self.generator)
        return torch.cat([measured.quantile(0.5).reshape(1), measured[drawn].quantile(0.5, dim=1)])


def interval(samples: Tensor) -> Interval:
    """The first sample as the value, with the 95 % interval of the others."""
    others = samples[1:][samples[1:].isfinite()]
    if not len(others):
        return Interval(float(samples[0]), float(samples[0]), float(samples[0]))
    low, high = torch.quantile(others, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(samples[0]), low, high)


class Prediction:
    """Predictions for one draft along the texts of one temperature."""

    def __init__(self, acceptance_probs: AcceptanceProbs, bootstrap: Bootstrap) -> None:
        self.acceptance_probs = acceptance_probs
        self._bootstrap = bootstrap
        self._n_tokens = (acceptance_probs.lengths - 1).double()  # the prefill gives the first token
        self._expected: dict[tuple[int, int], Expected] = {}

    def rounds(self, k: int, *, n_undrafted: int = 1) -> Expected:
        """Expected counts of rounds; see `expected`."""
        if (k, n_undrafted) not in self._expected:
            self._expected[k, n_undrafted] = expected(self.acceptance_probs, k, n_undrafted=n_undrafted)
        return self._expected[k, n_undrafted]

    def alpha(self) -> Interval:
        """Mean of sum(min(p, q)) over all tokens that the draft could propose."""
        return self._mean_overlap(torch.ones_like(self.acceptance_probs.overlap, dtype=torch.bool))

    def tau(self, k: int) -> Interval:
        """Acceptance length: tokens per round, bonus token included."""
        rounds = self.rounds(k)
        return interval(self._bootstrap.ratio(self._n_tokens - rounds.n_plain, rounds.n_rounds))

    def acceptance_by_position(self, k: int) -> tuple[PositionAcceptance, ...]:
        """Acceptance by position of a token in its round."""
        rounds = self.rounds(k)
        sums = [counts.sum(dim=0).tolist() for counts in (rounds.n_drafted, rounds.n_reached, rounds.n_accepted)]
        return tuple(
            PositionAcceptance(accepted / reached if reached else None, accepted / drafted)
            for drafted, reached, accepted in zip(*sums, strict=True)
            if drafted
        )

    def slices(self, texts: Sequence[TargetText]) -> tuple[Slice, ...]:
        """alpha by category of the prompts, and by position of the token in the text."""
        slices = (*self._by_category(texts), *self._by_context())
        return tuple(each for each in slices if each.n_tokens)

    def speedups(self, cell: CostCell, costs: Costs) -> Tensor:
        """Speed-up in each bootstrap sample, [samples + 1]."""
        ratio = self._bootstrap.repetitions(costs.ratios(cell))
        batch_size, step = cell.point.batch_size, costs.step(cell.point)
        if batch_size == 1:
            # the engine runs several plain steps after an empty proposal
            n_undrafted = max(1, min(MAX_UNDRAFTED, int(AHEAD_SECONDS / step)))
            rounds = self.rounds(cell.k, n_undrafted=n_undrafted)
            weights = self._bootstrap.weights
            n_idle = (weights @ rounds.n_plain) * costs.idle(cell)
            return (weights @ self._n_tokens) / ((weights @ rounds.n_rounds) * ratio + n_idle)
        rounds = self.rounds(cell.k)
        n_events = rounds.n_rounds + rounds.n_plain
        is_round = self._bootstrap.ratio(rounds.n_rounds, n_events)
        # the batch runs a round where at least one row has a proposal
        is_round = 1 - (1 - is_round) ** batch_size
        event = is_round * ratio + (1 - is_round) * costs.idle(cell)
        return self._bootstrap.ratio(self._n_tokens, n_events) / event

    def grid_cell(self, cell: CostCell, costs: Costs, *, draft_bytes: int = 0) -> GridCell:
        """Prediction of one cell; `draft_bytes`: bytes read per drafted token."""
        speedup, batch_size = interval(self.speedups(cell, costs)), cell.point.batch_size
        ratio, step = statistics.median(costs.ratios(cell)), costs.step(cell.point)
        cost = costs.round(cell)
        n_bytes = costs.step_bytes[cell.point] + cell.k * draft_bytes
        return GridCell(
            k=cell.k,
            batch_size=batch_size,
            cost=cost,
            predicted=speedup,
            ceiling=(cell.k + 1) / ratio,
            break_even=break_even(cell.k, ratio),
            token_seconds=step / speedup.value,
            tok_s=batch_size * speedup.value / step,
            gbps=n_bytes / cost.total / 1e9,
        )

    def _by_category(self, texts: Sequence[TargetText]) -> list[Slice]:
        categories = [text.prompt.category for text in texts]
        if len(set(categories)) < 2:
            return []
        return [
            self._slice("category", name, torch.tensor([each == name for each in categories]).unsqueeze(-1))
            for name in dict.fromkeys(categories)
        ]

    def _by_context(self) -> list[Slice]:
        n_most = int(self.acceptance_probs.most.max())
        edges = [1 + n * n_most // _CONTEXT_SLICES for n in range(_CONTEXT_SLICES + 1)]
        token = torch.arange(self.acceptance_probs.overlap.shape[1])
        return [
            self._slice("context", f"tokens {first + 1}-{min(last, n_most)}", (token >= first) & (token < last))
            for first, last in pairwise(edges)
            if last > first
        ]

    def _slice(self, kind: str, name: str, is_in: Tensor) -> Slice:
        is_counted = is_in & self.acceptance_probs.overlap.isfinite()
        return Slice(kind, name, int(is_counted.sum()), self._mean_overlap(is_in))  # type: ignore[arg-type]

    def _mean_overlap(self, is_in: Tensor) -> Interval:
        is_counted = (is_in & self.acceptance_probs.overlap.isfinite()).double()
        sums = (self.acceptance_probs.overlap.nan_to_num(0) * is_counted).sum(dim=1)
        return interval(self._bootstrap.ratio(sums, is_counted.sum(dim=1)))


def break_even(k: int, ratio: float) -> float | None:
    """The constant alpha at which rounds that cost `ratio` plain steps have speed-up 1.

    It solves 1 + a + ... + a^k = ratio; 0 where they cost no more than a step, None if even a = 1 is too little.
    """
    if ratio > k + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(middle**n for n in range(k + 1)) > ratio else (middle, high)
    return high if ratio > 1 else 0.0
