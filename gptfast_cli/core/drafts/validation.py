"""Predictions put to the test: decoding for real, with a draft and without, turn by turn."""

import statistics
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

from gptfast_cli.core.drafts.candidates import DraftCandidate, SimulatedDraft
from gptfast_cli.core.drafts.costs import BenchPoint, CostCell
from gptfast_cli.core.drafts.judge_state import JudgeState
from gptfast_cli.core.drafts.report import Interval, ValidationRun
from gptfast_cli.core.drafts.texts import TargetText
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.events import result_of


@dataclass(frozen=True, slots=True)
class Validation:
    """Texts to decode once more, so many side by side; `k` 0 is without a draft."""

    candidate: DraftCandidate | None
    k: int
    setting: BenchPoint
    texts: tuple[TargetText, ...]

    @property
    def spot(self) -> CostCell | None:
        """What is predicted of it; None of plain decoding."""
        return None if self.candidate is None else CostCell(self.candidate.name, self.k, self.setting)


def validations_of(findings: JudgeState, *, seconds: float, n_pairs: int) -> Iterator[Validation]:
    """The best of each draft, the best of all in the largest batch, and its deepest rounds; and no draft at all.

    As many texts as all of them together take `seconds` for, in so many pairs of runs.
    """
    first = next(iter(findings.texts))
    chosen: list[tuple[CostCell | None, int]] = [(None, min(findings.batch_sizes))]
    for temperature in findings.texts:
        ranked = _ranked(findings, temperature)
        chosen += [(spot, spot.setting.batch_size) for spot in ranked]
        if temperature == first and ranked:
            best, widest = ranked[0], BenchPoint(temperature, max(findings.batch_sizes))
            deepest = replace(best, k=max(findings.depths))
            chosen += [(spot, spot.setting.batch_size) for spot in (replace(best, setting=widest), deepest)]
    chosen = list(dict.fromkeys(chosen))
    candidates = {each.name: each for each in findings.candidates}
    for spot, batch_size in chosen:
        setting = BenchPoint(first, batch_size) if spot is None else spot.setting
        texts = findings.texts[setting.temperature]
        each = 2 * n_pairs * findings.costs.step(setting) * max(len(text.tokens) for text in texts) / batch_size
        n_texts = max(3 * batch_size, int(seconds / len(chosen) / each))
        many = tuple(texts[:n_texts])
        yield Validation(None if spot is None else candidates[spot.draft], 0 if spot is None else spot.k, setting, many)


def validation_run_of(trial: Validation, speedups: Rows[float], findings: JudgeState) -> ValidationRun:
    """What runs of a trial say of what was predicted of its very texts."""
    measured, temperature, predicted = median_and_range(speedups), trial.setting.temperature, 1.0
    if trial.spot is not None:
        prediction = findings.prediction(trial.spot.draft, temperature, len(trial.texts))
        predicted = float(prediction.speedups(trial.spot, findings.costs)[0])
    return ValidationRun(
        draft=trial.candidate.name if trial.candidate else None,
        temperature=temperature,
        k=trial.k,
        batch_size=trial.setting.batch_size,
        n_prompts=len(trial.texts),
        predicted=predicted,
        measured=measured,
        error=predicted / measured.value - 1,
    )


def speedup(runner: Runner, trial: Validation, stop_ids: frozenset[int]) -> float:
    """Of one run, over a plain one just before it."""
    plain = _tokens_per_second(runner, trial, stop_ids, None)
    speculation = None
    if trial.candidate is not None:
        proposer = trial.candidate.proposer
        if isinstance(proposer, SimulatedDraft):
            proposer.know({text.prompt.ids: text.tokens for text in trial.texts})
        speculation = Speculation(proposer, FixedDraftLength(trial.k))
    return _tokens_per_second(runner, trial, stop_ids, speculation) / plain


def median_and_range(speedups: Rows[float]) -> Interval:
    """The median of runs, the least and the largest."""
    return Interval(statistics.median(speedups), min(speedups), max(speedups))


def _ranked(findings: JudgeState, temperature: float) -> list[CostCell]:
    """The best depth of each draft in the smallest batch, the best draft first."""
    setting = BenchPoint(temperature, min(findings.batch_sizes))
    best: list[tuple[float, CostCell]] = []
    for candidate in findings.candidates:
        prediction = findings.prediction(candidate.name, temperature)
        spots = [spot for spot in findings.spots(candidate.name, temperature) if spot.setting == setting]
        rated = [(float(prediction.speedups(spot, findings.costs)[0]), spot) for spot in spots]
        best += [max(rated, key=lambda pair: pair[0])] if rated else []
    return [spot for _, spot in sorted(best, key=lambda pair: -pair[0])]


def _tokens_per_second(
    runner: Runner, trial: Validation, stop_ids: frozenset[int], speculation: Speculation | None
) -> float:
    """Decoding alone, and only while all places are taken: a batch that runs dry is a smaller one."""
    waiting = deque(
        Request(n, text.prompt.ids, text.sampler, Limits(text.most, len(text.prompt.ids) + text.most, stop_ids))
        for n, text in enumerate(trial.texts)
    )
    generator, seconds, n_tokens = Engine(runner, speculation, isolates_failures=True), 0.0, 0
    while waiting or generator.active:
        while waiting and len(generator.active) < trial.setting.batch_size:
            result_of(generator.admit(waiting.popleft()))
        if len(generator.active) < min(trial.setting.batch_size, len(trial.texts)):
            break
        stride = result_of(generator.step())
        seconds += stride.seconds
        n_tokens += stride.n_tokens
    return n_tokens / seconds
