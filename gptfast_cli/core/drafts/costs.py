"""What a round and a plain step take, measured on the very code that decodes, depth by depth and batch by batch.

Rounds of all drafts and depths take turns with plain steps, over and over, as what memory gives changes from second to
second: a cost is a ratio over the plain steps just before and after it. Ranks that hold the models together go by the
times of the first: what they do next hangs on them.
"""

import statistics
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import TypeAlias

import torch

from gptfast_cli.core.drafts.candidates import DraftCandidate
from gptfast_cli.core.drafts.report import Noise, RoundCost
from gptfast_cli.core.drafts.texts import JudgePrompt, TargetText
from gptfast_cli.core.engine.engine import Engine, StepOutput
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers import Proposal, Proposer
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.events import Job, Progress, result_of
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup

Texts: TypeAlias = Mapping[float, Rows[TargetText]]
"""By their temperature."""

_SECONDS = 0.03  # that a cell is looked at, each time
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it are spread evenly over 0..1, however many
_LEAST_DRIFTS = 4  # for percentiles of them
_NOISE_MEASUREMENTS = 12
_LEAST = 3  # rounds or steps of that, where they take longer


@dataclass(frozen=True, slots=True)
class BenchPoint:
    """Where costs are measured: texts of a temperature that grow side by side."""

    temperature: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class CostCell:
    """A draft at a depth, in a setting."""

    draft: str
    k: int
    point: BenchPoint


@dataclass(slots=True)
class Costs:
    """What was measured so far, repetition by repetition.

    steps:  seconds of a plain step; step_bytes: that it reads
    rounds: seconds of a round of the whole batch by its parts, and the plain step's around it
    idles:  plain steps that follow where a draft had nothing to propose, over those without any draft
    drifts: seconds of a plain step over those of the equal look at it just before
    """

    steps: dict[BenchPoint, list[float]] = field(default_factory=dict)
    step_bytes: dict[BenchPoint, int] = field(default_factory=dict)
    rounds: dict[CostCell, list[tuple[RoundCost, float]]] = field(default_factory=dict)
    idles: dict[tuple[str, BenchPoint], list[float]] = field(default_factory=dict)
    drifts: list[float] = field(default_factory=list)

    @property
    def noise(self) -> Noise | None:
        """Of the machine so far; None before plain steps were measured often enough to say."""
        if len(self.drifts) < _LEAST_DRIFTS:
            return None
        tenths = statistics.quantiles(self.drifts, n=10, method="inclusive")
        return Noise(tenths[0], tenths[-1])

    def step(self, point: BenchPoint) -> float:
        """Median seconds of a plain step."""
        return statistics.median(self.steps[point])

    def ratios(self, cell: CostCell) -> list[float]:
        """Rounds over plain steps, each time."""
        return [cost.total / step for cost, step in self.rounds[cell]]

    def idle(self, cell: CostCell) -> float:
        """Median of the plain steps that follow where nothing was proposed, over those without a draft."""
        return statistics.median(self.idles.get((cell.draft, cell.point), [1.0]))

    def round(self, cell: CostCell) -> RoundCost:
        """Median seconds of each part of a round."""
        costs = [cost for cost, _ in self.rounds[cell]]
        return RoundCost(
            *(
                statistics.median(getattr(cost, part) for cost in costs)
                for part in ("draft", "verify", "sample", "host")
            )
        )


class CostMeter:
    """Measures a target with drafts, in rows that keep what they hold from one cell to the next."""

    def __init__(
        self, runner: Runner, candidates: Rows[DraftCandidate], draft_lengths: Rows[int], group: ProcessGroup = ALONE
    ) -> None:
        self.costs = Costs()
        self._runner = runner
        self._group = group
        self._proposers = {each.name: _always_proposing(each.proposer, runner.n_rows) for each in candidates}
        # a model always has something to propose
        self._silent = {
            each.name: Speculation(_Silent(each.proposer), FixedDraftLength(max(draft_lengths)))
            for each in candidates
            if isinstance(each.proposer, NGram)
        }
        self._draft_lengths = draft_lengths
        self._speculations: dict[CostCell, Speculation] = {}  # a round's seconds are guessed from the last one's

    def measure(self, texts: Texts, batch_sizes: Rows[int], n_times: int) -> Job[None]:
        """Look at every cell so many times."""
        points = [BenchPoint(temperature, n) for temperature in texts for n in batch_sizes]
        cells = [
            CostCell(draft, k, point) for point in points for draft in self._proposers for k in self._draft_lengths
        ]
        n_cells, n_done = n_times * len(cells), 0
        for _ in range(n_times):
            for cell in self.measure_once(texts, cells):
                n_done += cell is not None
                yield Progress("measure costs", n_done, n_cells, "runs")

    def check_noise(self, prompt: JudgePrompt, n_tokens: int) -> None:
        """Plain steps at batch 1 after a prompt, over and over: how quiet the machine is before all else."""
        text = TargetText(prompt, (0,) * n_tokens, n_tokens, Sampler(Sampling(0.0), 0, 0))
        load = _Load(self._runner, [text], None)
        measurements = [self._step(load)[0] for _ in range(_NOISE_MEASUREMENTS + 1)]
        self.costs.drifts += [after / before for before, after in pairwise(measurements[1:])]  # the first one warms up

    def measure_once(self, texts: Texts, cells: Rows[CostCell]) -> Iterator[CostCell | None]:
        """Look at some cells once, those of one setting together, and plain steps before and after each draft."""
        for point, alike in groupby(cells, key=lambda cell: cell.point):
            chosen = _of_all_lengths(texts[point.temperature], point.batch_size)
            before = self._plain(point, chosen)
            yield None
            for draft, own in groupby(alike, key=lambda cell: cell.draft):
                if draft in self._silent:
                    seconds, _ = self._step(_Load(self._runner, chosen, self._silent[draft]))
                    self.costs.idles.setdefault((draft, point), []).append(seconds / before)
                measurements: list[tuple[CostCell, RoundCost]] = []
                for cell in own:
                    measurements.append((cell, self._round(cell, chosen)))
                    yield cell
                after = self._plain(point, chosen)
                self.costs.drifts.append(after / before)
                for cell, cost in measurements:
                    self.costs.rounds.setdefault(cell, []).append((cost, (before + after) / 2))
                before = after

    def _plain(self, point: BenchPoint, texts: Rows[TargetText]) -> float:
        """Seconds of a plain step without a draft."""
        seconds, self.costs.step_bytes[point] = self._step(_Load(self._runner, texts, None))
        self.costs.steps.setdefault(point, []).append(seconds)
        return seconds

    def _step(self, load: "_Load") -> tuple[float, int]:
        """Seconds of a plain step, and bytes that it reads."""
        seconds, n_bytes, n_steps = 0.0, 0, 0
        while seconds < _SECONDS or n_steps < _LEAST:
            stride = load.step()
            seconds += self._group.broadcast(stride.seconds)
            n_bytes += stride.n_bytes
            n_steps += stride.counts[0]
        return seconds / n_steps, n_bytes // n_steps

    def _round(self, cell: CostCell, texts: Rows[TargetText]) -> RoundCost:
        """Seconds of a round, by its parts."""
        is_first = cell not in self._speculations
        speculation = self._speculations.setdefault(
            cell, Speculation(self._proposers[cell.draft], FixedDraftLength(cell.k))
        )
        load, rounds = _Load(self._runner, texts, speculation), speculation.rounds
        if is_first:
            load.step()  # what is made once is made now
        seconds, n_rounds, parts = 0.0, 0, [0.0] * 3
        while seconds < _SECONDS or n_rounds < _LEAST:
            before = rounds.n_rounds, rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
            stride = load.step()
            if rounds.n_rounds == before[0]:
                continue  # the last token of a text, for which nothing is drafted
            seconds += self._group.broadcast(stride.seconds)
            n_rounds += (rounds.n_rounds - before[0]) // len(texts)
            after = rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
            parts = [total + b - a for total, a, b in zip(parts, before[1:], after, strict=True)]
        draft, verify, sample = (part / n_rounds for part in self._group.broadcast(parts))
        return RoundCost(draft, verify, sample, max(0.0, seconds / n_rounds - draft - verify - sample))


class _Load:
    """Texts that are decoded side by side without end, each at another place, and each begun anew where it is over.

    So calls end as often as they do in a batch that is kept full. What a text begins with, its row holds already.
    """

    def __init__(self, runner: Runner, texts: Rows[TargetText], speculation: Speculation | None) -> None:
        self._generator = Engine(runner, speculation, isolates_failures=True)
        self._texts = texts
        for n, text in enumerate(texts):
            self._admit(n, int(len(text.tokens) * (n * _GOLDEN % 1)))

    def step(self) -> StepOutput:
        """One call of the generator, all places taken."""
        for n in {*range(len(self._texts))} - {sequence.id for sequence in self._generator.active}:
            self._admit(n, 0)
        return result_of(self._generator.step())

    def _admit(self, n: int, n_known: int) -> None:
        text = self._texts[n]
        prompt = (*text.prompt.ids, *text.tokens[:n_known])
        limits = Limits(max(2, len(text.tokens) - n_known), len(prompt) + len(text.tokens), frozenset())
        sequence = Request(n, prompt, text.sampler, limits)
        result_of(self._generator.admit(sequence))
        if sequence.failure is not None:  # it would fail each time it is begun anew
            raise sequence.failure


def _of_all_lengths(texts: Rows[TargetText], n: int) -> list[TargetText]:
    """Texts from short to long, as many tokens between each and the next: a long one takes more of the time."""
    ascending = sorted(texts, key=lambda text: len(text.tokens))
    ends = list(accumulate(len(text.tokens) for text in ascending))
    return [ascending[bisect_left(ends, (2 * i + 1) * ends[-1] / (2 * n))] for i in range(n)]


def _always_proposing(proposer: Proposer, n_rows: int) -> Proposer:
    """A proposer that never has nothing to propose: what verification costs does not depend on what it finds."""
    return _Filled(NGram(n_rows)) if isinstance(proposer, NGram) else proposer


class _Silent:
    """See Proposer; one that looks, and then proposes nothing."""

    bytes_per_step = 0

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def begin(self, row: int, prompt: Rows[int]) -> None:
        self._proposer.begin(row, prompt)

    def move(self, source: int, target: int) -> None:
        self._proposer.move(source, target)

    def propose(self, contexts: Rows[SamplingContext], draft_lengths: Rows[int]) -> list[Proposal]:
        return [Proposal(each.tokens[:0], None) for each in self._proposer.propose(contexts, draft_lengths)]


class _Filled:
    """See Proposer; prompt lookup that always drafts as many tokens as it may."""

    bytes_per_step = 0

    def __init__(self, proposer: NGram) -> None:
        self._proposer = proposer

    def begin(self, row: int, prompt: Rows[int]) -> None:
        self._proposer.begin(row, prompt)

    def move(self, source: int, target: int) -> None:
        self._proposer.move(source, target)

    def propose(self, contexts: Rows[SamplingContext], draft_lengths: Rows[int]) -> list[Proposal]:
        proposals = self._proposer.propose(contexts, draft_lengths)
        return [
            Proposal(torch.nn.functional.pad(each.tokens, (0, draft_length - len(each.tokens))), None)
            for each, draft_length in zip(proposals, draft_lengths, strict=True)
        ]
