"""What a round and a plain step take, measured on the very code that decodes, depth by depth and batch by batch.

Rounds of all drafts and depths take turns with plain steps, over and over, as what memory gives changes from second to
second: a cost is a ratio over the plain steps just before and after it.
"""

import statistics
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch

from gptfast_cli.core.decode.depth import FixedDepth
from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.proposers import Proposal, Proposer
from gptfast_cli.core.decode.proposers.ngram import NGram
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import Draw
from gptfast_cli.core.decode.sequence import Limits, Sequence
from gptfast_cli.core.decode.speculation import Speculation
from gptfast_cli.core.events import Job, Progress, result_of
from gptfast_cli.core.measure.drafts.contestants import Contestant
from gptfast_cli.core.measure.drafts.judgement import RoundCost
from gptfast_cli.core.measure.drafts.texts import Text

_SECONDS = 0.03  # that a cell is looked at, each time
_LEAST = 3  # rounds or steps of that, where they take longer


@dataclass(frozen=True, slots=True)
class Setting:
    """Where costs are measured: texts of a temperature that grow side by side."""

    temperature: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Spot:
    """A draft at a depth, in a setting."""

    draft: str
    k: int
    setting: Setting


@dataclass(slots=True)
class Costs:
    """What was measured so far, repetition by repetition.

    steps:  seconds of a plain step; step_bytes: that it reads
    rounds: seconds of a round of the whole batch by its parts, and the plain step's around it
    idles:  plain steps that follow where a draft had nothing to propose, over those without any draft
    """

    steps: dict[Setting, list[float]] = field(default_factory=dict)
    step_bytes: dict[Setting, int] = field(default_factory=dict)
    rounds: dict[Spot, list[tuple[RoundCost, float]]] = field(default_factory=dict)
    idles: dict[tuple[str, Setting], list[float]] = field(default_factory=dict)

    def step(self, setting: Setting) -> float:
        """Median seconds of a plain step."""
        return statistics.median(self.steps[setting])

    def ratios(self, spot: Spot) -> list[float]:
        """Rounds over plain steps, each time."""
        return [cost.total / step for cost, step in self.rounds[spot]]

    def idle(self, spot: Spot) -> float:
        """Median of the plain steps that follow where nothing was proposed, over those without a draft."""
        return statistics.median(self.idles.get((spot.draft, spot.setting), [1.0]))

    def round(self, spot: Spot) -> RoundCost:
        """Median seconds of each part of a round."""
        costs = [cost for cost, _ in self.rounds[spot]]
        return RoundCost(
            *(
                statistics.median(getattr(cost, part) for cost in costs)
                for part in ("draft", "verify", "sample", "host")
            )
        )


class CostMeter:
    """Measures a target with drafts, in rows that keep what they hold from one cell to the next."""

    def __init__(self, runner: Runner, contestants: Rows[Contestant], depths: Rows[int]) -> None:
        self.costs = Costs()
        self._runner = runner
        self._proposers = {each.name: _always_proposing(each.proposer, runner.n_rows) for each in contestants}
        # a model always has something to propose
        self._silent = {
            each.name: Speculation(_Silent(each.proposer), FixedDepth(max(depths)))
            for each in contestants
            if isinstance(each.proposer, NGram)
        }
        self._depths = depths
        self._speculations: dict[Spot, Speculation] = {}  # a round's seconds are guessed from the last one's

    def measure(self, texts: Mapping[float, Rows[Text]], batch_sizes: Rows[int], n_times: int) -> Job[None]:
        """Look at every cell so many times; `texts` are by their temperature."""
        settings = [Setting(temperature, n) for temperature in texts for n in batch_sizes]
        n_cells = n_times * len(settings) * (1 + len(self._proposers) * len(self._depths))
        n_done = 0
        for _ in range(n_times):
            for setting in settings:
                beginning = _beginning(texts[setting.temperature], setting.batch_size, max(self._depths))
                for _ in self._look(setting, beginning):
                    n_done += 1
                    yield Progress("measure costs", n_done, n_cells, "runs")

    def _look(self, setting: Setting, beginning: Rows[Sequence]) -> Iterator[None]:
        """Each cell of a setting once."""
        before = self._plain(setting, beginning)
        yield
        for draft, silent in self._silent.items():
            seconds = self._step(setting, beginning, silent)
            self.costs.idles.setdefault((draft, setting), []).append(seconds / before)
        for draft in self._proposers:
            looks: list[tuple[Spot, RoundCost]] = []
            for k in self._depths:
                spot = Spot(draft, k, setting)
                looks.append((spot, self._round(spot, beginning)))
                yield
            after = self._plain(setting, beginning)
            for spot, cost in looks:
                self.costs.rounds.setdefault(spot, []).append((cost, (before + after) / 2))
            before = after

    def _plain(self, setting: Setting, beginning: Rows[Sequence]) -> float:
        """Seconds of a plain step without a draft."""
        seconds = self._step(setting, beginning, None)
        self.costs.steps.setdefault(setting, []).append(seconds)
        return seconds

    def _step(self, setting: Setting, beginning: Rows[Sequence], speculation: Speculation | None) -> float:
        """Seconds of a plain step."""
        generator = self._begun(beginning, speculation)
        seconds, n_bytes, n_steps = 0.0, 0, 0
        while seconds < _SECONDS or n_steps < _LEAST:
            if not generator.active:
                generator = self._begun(beginning, speculation)
            stride = result_of(generator.step())
            seconds += stride.seconds
            n_bytes += stride.n_bytes
            n_steps += stride.counts[0]
        self.costs.step_bytes[setting] = n_bytes // n_steps
        return seconds / n_steps

    def _round(self, spot: Spot, beginning: Rows[Sequence]) -> RoundCost:
        """Seconds of a round, by its parts."""
        if spot not in self._speculations:
            self._speculations[spot] = Speculation(self._proposers[spot.draft], FixedDepth(spot.k))
            result_of(self._begun(beginning, self._speculations[spot]).step())  # what is made once is made now
        speculation = self._speculations[spot]
        generator, rounds, all_seconds = self._begun(beginning, speculation), speculation.rounds, 0.0
        before = rounds.n_rounds, rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
        n_rounds = 0
        while all_seconds < _SECONDS or n_rounds < _LEAST:
            if min((each.n_left for each in generator.active), default=0) <= spot.k:
                generator = self._begun(beginning, speculation)
            all_seconds += result_of(generator.step()).seconds
            n_rounds = (rounds.n_rounds - before[0]) // len(beginning)
        after = rounds.draft_seconds, rounds.verify_seconds, rounds.sample_seconds
        draft, verify, sample = ((b - a) / n_rounds for a, b in zip(before[1:], after, strict=True))
        return RoundCost(draft, verify, sample, max(0.0, all_seconds / n_rounds - draft - verify - sample))

    def _begun(self, beginning: Rows[Sequence], speculation: Speculation | None) -> Generator:
        """Texts that have just begun once more; the rows hold them already."""
        generator = Generator(self._runner, speculation)
        for each in beginning:
            result_of(generator.admit(Sequence(each.id, each.prompt, each.sampler, each.limits)))
        return generator


def _beginning(texts: Rows[Text], n: int, deepest: int) -> list[Sequence]:
    """Sequences in the middle of texts, far from any end."""
    chosen = [texts[i % len(texts)] for i in range(n)]
    prompts = [(*each.prompt.ids, *each.tokens[: len(each.tokens) // 2]) for each in chosen]
    # room for many rounds: the last one of a text is shallower
    limits = [Limits(max(each.most, 24 * (deepest + 1)), 1 << 40, frozenset()) for each in chosen]
    return [Sequence(i, prompt, chosen[i].sampler, limits[i]) for i, prompt in enumerate(prompts)]


def _always_proposing(proposer: Proposer, n_rows: int) -> Proposer:
    """A proposer that never has nothing to propose: what verification costs does not depend on what it finds."""
    return _Filled(NGram(n_rows)) if isinstance(proposer, NGram) else proposer


class _Silent:
    """See Proposer; one that looks, and then proposes nothing."""

    bytes_per_step = 0

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def begin(self, row: int, prompt: Rows[int]) -> None:
        """See Proposer."""
        self._proposer.begin(row, prompt)

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self._proposer.move(source, target)

    def propose(self, draws: Rows[Draw], depths: Rows[int]) -> list[Proposal]:
        """See Proposer."""
        return [Proposal(each.tokens[:0], None) for each in self._proposer.propose(draws, depths)]


class _Filled:
    """See Proposer; prompt lookup that always drafts as many tokens as it may."""

    bytes_per_step = 0

    def __init__(self, lookup: NGram) -> None:
        self._lookup = lookup

    def begin(self, row: int, prompt: Rows[int]) -> None:
        """See Proposer."""
        self._lookup.begin(row, prompt)

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self._lookup.move(source, target)

    def propose(self, draws: Rows[Draw], depths: Rows[int]) -> list[Proposal]:
        """See Proposer."""
        proposals = self._lookup.propose(draws, depths)
        return [
            Proposal(torch.nn.functional.pad(each.tokens, (0, depth - len(each.tokens))), None)
            for each, depth in zip(proposals, depths, strict=True)
        ]
