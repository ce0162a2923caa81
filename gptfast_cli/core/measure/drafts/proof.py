"""Predictions put to the test: decoding for real, with a draft and without, turn by turn."""

import statistics
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

from gptfast_cli.core.decode.depth import FixedDepth
from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sequence import Limits, Sequence
from gptfast_cli.core.decode.speculation import Speculation
from gptfast_cli.core.events import result_of
from gptfast_cli.core.measure.drafts.agreeing import Agreeing
from gptfast_cli.core.measure.drafts.contestants import Contestant
from gptfast_cli.core.measure.drafts.costs import Setting, Spot
from gptfast_cli.core.measure.drafts.findings import Findings
from gptfast_cli.core.measure.drafts.judgement import Interval, Proof
from gptfast_cli.core.measure.drafts.texts import Text


@dataclass(frozen=True, slots=True)
class Trial:
    """Texts to decode once more, so many side by side; `k` 0 is without a draft."""

    contestant: Contestant | None
    k: int
    setting: Setting
    texts: tuple[Text, ...]

    @property
    def spot(self) -> Spot | None:
        """What is predicted of it; None of plain decoding."""
        return None if self.contestant is None else Spot(self.contestant.name, self.k, self.setting)


def trials_of(findings: Findings, *, seconds: float, n_pairs: int) -> Iterator[Trial]:
    """The best of each draft, the best of all in the largest batch, and its deepest rounds; and no draft at all.

    As many texts as all of them together take `seconds` for, in so many pairs of runs.
    """
    first = next(iter(findings.texts))
    chosen: list[tuple[Spot | None, int]] = [(None, min(findings.batch_sizes))]
    for temperature in findings.texts:
        ranked = _ranked(findings, temperature)
        chosen += [(spot, spot.setting.batch_size) for spot in ranked]
        if temperature == first and ranked:
            best, widest = ranked[0], Setting(temperature, max(findings.batch_sizes))
            deepest = replace(best, k=max(findings.depths))
            chosen += [(spot, spot.setting.batch_size) for spot in (replace(best, setting=widest), deepest)]
    chosen = list(dict.fromkeys(chosen))
    contestants = {each.name: each for each in findings.contestants}
    for spot, batch_size in chosen:
        setting = Setting(first, batch_size) if spot is None else spot.setting
        texts = findings.texts[setting.temperature]
        each = 2 * n_pairs * findings.costs.step(setting) * max(len(text.tokens) for text in texts) / batch_size
        n_texts = max(3 * batch_size, int(seconds / len(chosen) / each))
        many = tuple(texts[:n_texts])
        yield Trial(None if spot is None else contestants[spot.draft], 0 if spot is None else spot.k, setting, many)


def proof_of(trial: Trial, speedups: Rows[float], findings: Findings) -> Proof:
    """What runs of a trial say of what was predicted of its very texts."""
    measured, temperature, predicted = median_and_range(speedups), trial.setting.temperature, 1.0
    if trial.spot is not None:
        prediction = findings.prediction(trial.spot.draft, temperature, len(trial.texts))
        predicted = float(prediction.speedups(trial.spot, findings.costs)[0])
    return Proof(
        draft=trial.contestant.name if trial.contestant else None,
        temperature=temperature,
        k=trial.k,
        batch_size=trial.setting.batch_size,
        n_prompts=len(trial.texts),
        predicted=predicted,
        measured=measured,
        error=predicted / measured.value - 1,
    )


def speedup(runner: Runner, trial: Trial, stop_ids: frozenset[int]) -> float:
    """Of one run, over a plain one just before it."""
    plain = _tokens_per_second(runner, trial, stop_ids, None)
    speculation = None
    if trial.contestant is not None:
        proposer = trial.contestant.proposer
        if isinstance(proposer, Agreeing):
            proposer.know({text.prompt.ids: text.tokens for text in trial.texts})
        speculation = Speculation(proposer, FixedDepth(trial.k))
    return _tokens_per_second(runner, trial, stop_ids, speculation) / plain


def median_and_range(speedups: Rows[float]) -> Interval:
    """The median of runs, the least and the largest."""
    return Interval(statistics.median(speedups), min(speedups), max(speedups))


def _ranked(findings: Findings, temperature: float) -> list[Spot]:
    """The best depth of each draft in the smallest batch, the best draft first."""
    setting = Setting(temperature, min(findings.batch_sizes))
    best: list[tuple[float, Spot]] = []
    for contestant in findings.contestants:
        prediction = findings.prediction(contestant.name, temperature)
        spots = [spot for spot in findings.spots(contestant.name, temperature) if spot.setting == setting]
        rated = [(float(prediction.speedups(spot, findings.costs)[0]), spot) for spot in spots]
        best += [max(rated, key=lambda pair: pair[0])] if rated else []
    return [spot for _, spot in sorted(best, key=lambda pair: -pair[0])]


def _tokens_per_second(
    runner: Runner, trial: Trial, stop_ids: frozenset[int], speculation: Speculation | None
) -> float:
    """Decoding alone, and only while all places are taken: a batch that runs dry is a smaller one."""
    waiting = deque(
        Sequence(n, text.prompt.ids, text.sampler, Limits(text.most, len(text.prompt.ids) + text.most, stop_ids))
        for n, text in enumerate(trial.texts)
    )
    generator, seconds, n_tokens = Generator(runner, speculation, isolates_failures=True), 0.0, 0
    while waiting or generator.active:
        while waiting and len(generator.active) < trial.setting.batch_size:
            result_of(generator.admit(waiting.popleft()))
        if len(generator.active) < min(trial.setting.batch_size, len(trial.texts)):
            break
        stride = result_of(generator.step())
        seconds += stride.seconds
        n_tokens += stride.n_tokens
    return n_tokens / seconds
