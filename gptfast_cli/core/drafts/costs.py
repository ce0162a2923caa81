"""Costs of a round and of a plain step, measured with the code that decodes, for each draft length and batch size.

Rounds of all drafts and draft lengths are interleaved with plain steps, because memory bandwidth drifts from second to
second: a cost is a ratio to the plain steps just before and after it. With tensor parallelism the timings of rank 0
count on all ranks, because they decide what runs next.
"""

import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import TypeAlias

from torch import Tensor
from torch.nn.functional import pad

from gptfast_cli.core.drafts.candidates import DraftCandidate
from gptfast_cli.core.drafts.report import Noise, RoundCost
from gptfast_cli.core.drafts.texts import JudgePrompt, TargetText
from gptfast_cli.core.engine.engine import Engine, StepOutput
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers import Proposal, Proposer
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.engine.speculative.verification import Rounds
from gptfast_cli.core.events import Job, Progress, result_of
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup

Texts: TypeAlias = Mapping[float, Sequence[TargetText]]
"""Texts by temperature."""

_SECONDS = 0.03  # time of one measurement
_GOLDEN = (5**0.5 - 1) / 2  # n * golden ratio mod 1 is spread evenly over 0..1 for any count
_LEAST_DRIFTS = 4  # to estimate percentiles from
_NOISE_MEASUREMENTS = 12
_LEAST = 3  # minimum rounds or steps of a measurement


@dataclass(frozen=True, slots=True)
class BenchPoint:
    """Where costs are measured: the texts of a temperature, decoded at a batch size."""

    temperature: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class CostCell:
    """A draft with draft length k at a BenchPoint."""

    draft: str
    k: int
    point: BenchPoint


@dataclass(slots=True)
class Costs:
    """Repeated measurements so far.

    steps:      seconds of a plain step
    step_bytes: bytes that a plain step reads
    rounds:     cost of a round of the whole batch, and seconds of the plain steps around it
    idles:      seconds of a plain step after an empty proposal / seconds of a plain step without a draft
    drifts:     seconds of a plain step / seconds of the previous measurement of the same step
    """

    steps: dict[BenchPoint, list[float]] = field(default_factory=dict)
    step_bytes: dict[BenchPoint, int] = field(default_factory=dict)
    rounds: dict[CostCell, list[tuple[RoundCost, float]]] = field(default_factory=dict)
    idles: dict[tuple[str, BenchPoint], list[float]] = field(default_factory=dict)
    drifts: list[float] = field(default_factory=list)

    @property
    def noise(self) -> Noise | None:
        """Noise of the machine; None before enough plain steps were measured."""
        if len(self.drifts) < _LEAST_DRIFTS:
            return None
        tenths = statistics.quantiles(self.drifts, n=10, method="inclusive")
        return Noise(tenths[0], tenths[-1])

    def step(self, point: BenchPoint) -> float:
        """Median seconds of a plain step."""
        return statistics.median(self.steps[point])

    def ratios(self, cell: CostCell) -> list[float]:
        """Seconds of a round / seconds of a plain step, for each repetition."""
        return [cost.total / step for cost, step in self.rounds[cell]]

    def idle(self, cell: CostCell) -> float:
        """Median cost of a plain step after an empty proposal, in plain steps."""
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
    """Measures a target with drafts; rows keep their KV cache from one cell to the next."""

    def __init__(
        self,
        runner: Runner,
        candidates: Sequence[DraftCandidate],
        draft_lengths: Sequence[int],
        group: ProcessGroup = ALONE,
    ) -> None:
        self.costs = Costs()
        self._runner = runner
        self._group = group
        self._proposers = {each.name: each.proposer for each in candidates}
        self._silent: dict[str, Speculation] = {}  # of drafts that may propose nothing, their empty proposals
        for name, proposer in self._proposers.items():
            if proposer.may_be_empty:
                # full proposals: the cost of verification does not depend on the tokens
                self._proposers[name] = _Resized(proposer, lambda tokens, n: pad(tokens, (0, n - len(tokens))))
                empty = _Resized(proposer, lambda tokens, _: tokens[:0])
                self._silent[name] = Speculation(empty, FixedDraftLength(max(draft_lengths)))
        self._draft_lengths = draft_lengths
        self._speculations: dict[CostCell, Speculation] = {}  # kept: each estimates its next round's time from its last

    def measure(self, texts: Texts, batch_sizes: Sequence[int], n_times: int) -> Job[None]:
        """Measure every cell `n_times`."""
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
        """Repeat plain steps at batch size 1, to estimate the machine's noise before the long measurements."""
        text = TargetText(prompt, (0,) * n_tokens, n_tokens, Sampler(Sampling(0.0), 0, 0))
        load = _Load(self._runner, [text], None)
        measurements = [self._step(load)[0] for _ in range(_NOISE_MEASUREMENTS + 1)]
        self.costs.drifts += [
            after / before for before, after in pairwise(measurements[1:])
        ]  # the first one is warm-up

    def measure_once(self, texts: Texts, cells: Sequence[CostCell]) -> Iterator[CostCell | None]:
        """Measure cells once, grouped by BenchPoint, with plain steps before and after each draft."""
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

    def _plain(self, point: BenchPoint, texts: Sequence[TargetText]) -> float:
        """Measure a plain step without a draft, in seconds."""
        seconds, self.costs.step_bytes[point] = self._step(_Load(self._runner, texts, None))
        self.costs.steps.setdefault(point, []).append(seconds)
        return seconds

    def _step(self, load: "_Load") -> tuple[float, int]:
        """Seconds of a plain step, and bytes read by it."""
        n_steps, seconds, n_bytes = self._timed(load, None)
        return seconds / n_steps, n_bytes // n_steps

    def _round(self, cell: CostCell, texts: Sequence[TargetText]) -> RoundCost:
        """Measure a round, in seconds by part."""
        is_first = cell not in self._speculations
        speculation = self._speculations.setdefault(
            cell, Speculation(self._proposers[cell.draft], FixedDraftLength(cell.k))
        )
        load, rounds = _Load(self._runner, texts, speculation), speculation.rounds
        if is_first:
            load.step()  # warm-up: buffers are allocated now
        before = rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
        n_rounds, seconds, _ = self._timed(load, rounds)
        after = rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
        parts = self._group.broadcast([b - a for a, b in zip(before, after, strict=True)])
        draft, verify, sample = (part / n_rounds for part in parts)
        return RoundCost(draft, verify, sample, max(0.0, seconds / n_rounds - draft - verify - sample))

    def _timed(self, load: "_Load", rounds: Rounds | None) -> tuple[int, float, int]:
        """Run long enough to be timed: number, seconds and bytes of plain steps, or of the batch's `rounds`."""
        n_runs, seconds, n_bytes = 0, 0.0, 0
        while seconds < _SECONDS or n_runs < _LEAST:
            n_before = 0 if rounds is None else rounds.n_rounds
            output = load.step()
            n_new = output.counts[0] if rounds is None else (rounds.n_rounds - n_before) // load.n_rows
            if n_new == 0:
                continue  # nothing is drafted for the last token of a text
            n_runs += n_new
            seconds += self._group.broadcast(output.seconds)
            n_bytes += output.n_bytes
        return n_runs, seconds, n_bytes


class _Load:
    """A full batch of texts that restart when they end, each starting at another position.

    So native calls end as often as in a batch that is kept full. The prompt of a restarted text is still in the cache.
    """

    def __init__(self, runner: Runner, texts: Sequence[TargetText], speculation: Speculation | None) -> None:
        self._engine = Engine(runner, speculation, isolates_failures=True)
        self._texts = texts
        self.n_rows = len(texts)
        for n, text in enumerate(texts):
            self._begin(n, int(len(text.tokens) * (n * _GOLDEN % 1)))

    def step(self) -> StepOutput:
        """One decode call of the engine, with all rows in use."""
        for n in {*range(len(self._texts))} - {request.id for request in self._engine.active}:
            self._begin(n, 0)
        return result_of(self._engine.step())

    def _begin(self, n: int, n_known: int) -> None:
        text = self._texts[n]
        prompt = (*text.prompt.ids, *text.tokens[:n_known])
        limits = Limits(max(2, len(text.tokens) - n_known), len(prompt) + len(text.tokens), frozenset())
        request = Request(n, prompt, text.sampler, limits)
        self._engine.submit(request)
        result_of(self._engine.fill_rows())
        if request.failure is not None:  # it would fail at every restart
            raise request.failure


def _of_all_lengths(texts: Sequence[TargetText], n: int) -> list[TargetText]:
    """`n` texts at equal quantiles of all tokens: long texts take more of the decoding time."""
    ascending = sorted(texts, key=lambda text: len(text.tokens))
    ends = list(accumulate(len(text.tokens) for text in ascending))
    return [ascending[bisect_left(ends, (2 * i + 1) * ends[-1] / (2 * n))] for i in range(n)]


class _Resized:
    """A proposer whose proposals `resize` cuts or pads, given the tokens and the draft length."""

    may_be_empty = True
    native_runner = None

    def __init__(self, proposer: Proposer, resize: Callable[[Tensor, int], Tensor]) -> None:
        self._proposer = proposer
        self._resize = resize
        self.bytes_per_step, self.begin, self.move = proposer.bytes_per_step, proposer.begin, proposer.move

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        proposals = self._proposer.propose(contexts, draft_lengths)
        return [Proposal(self._resize(each.tokens, n), None) for each, n in zip(proposals, draft_lengths, strict=True)]
