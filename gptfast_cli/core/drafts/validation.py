"""Validation runs: predicted speed-ups compared with real decoding, with a draft and without, interleaved."""

import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gptfast_cli.core.drafts.candidates import DraftCandidate
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
    """Texts to decode at a BenchPoint with a draft; `candidate` None with k 0 is plain decoding."""

    candidate: DraftCandidate | None
    k: int
    point: BenchPoint
    texts: tuple[TargetText, ...]

    @property
    def cell(self) -> CostCell | None:
        """The cell that predicts it; None for plain decoding."""
        return None if self.candidate is None else CostCell(self.candidate.name, self.k, self.point)


def validations_of(state: JudgeState, *, seconds: float, n_pairs: int) -> Iterator[Validation]:
    """Validate the best cell of each draft, the best one at the largest batch and at the largest k, and no draft.

    The number of texts is chosen such that all validations take about `seconds`, in `n_pairs` pairs of runs each.
    """
    first = next(iter(state.texts))
    chosen: list[tuple[CostCell | None, int]] = [(None, min(state.batch_sizes))]
    for temperature in state.texts:
        ranked = _ranked(state, temperature)
        chosen += [(cell, cell.point.batch_size) for cell in ranked]
        if temperature == first and ranked:
            best, widest = ranked[0], BenchPoint(temperature, max(state.batch_sizes))
            max_draft_length = replace(best, k=max(state.draft_lengths))
            chosen += [(cell, cell.point.batch_size) for cell in (replace(best, point=widest), max_draft_length)]
    chosen = list(dict.fromkeys(chosen))
    candidates = {each.name: each for each in state.candidates}
    for cell, batch_size in chosen:
        point = BenchPoint(first, batch_size) if cell is None else cell.point
        texts = state.texts[point.temperature]
        each = 2 * n_pairs * state.costs.step(point) * max(len(text.tokens) for text in texts) / batch_size
        n_texts = max(3 * batch_size, int(seconds / len(chosen) / each))
        many = tuple(texts[:n_texts])
        yield Validation(None if cell is None else candidates[cell.draft], 0 if cell is None else cell.k, point, many)


def validation_run_of(validation: Validation, speedups: Sequence[float], state: JudgeState) -> ValidationRun:
    """Compare measured speed-ups with the prediction for the same texts."""
    measured, temperature, predicted = median_and_range(speedups), validation.point.temperature, 1.0
    if validation.cell is not None:
        prediction = state.prediction(validation.cell.draft, temperature, len(validation.texts))
        predicted = float(prediction.speedups(validation.cell, state.costs)[0])
    return ValidationRun(
        draft=validation.candidate.name if validation.candidate else None,
        temperature=temperature,
        k=validation.k,
        batch_size=validation.point.batch_size,
        n_prompts=len(validation.texts),
        predicted=predicted,
        measured=measured,
        error=predicted / measured.value - 1,
    )


def speedup(runner: Runner, validation: Validation, stop_ids: frozenset[int]) -> float:
    """Speed-up of one run over a plain run just before it."""
    plain = _tokens_per_second(runner, validation, stop_ids, None)
    speculation = None
    if validation.candidate is not None:
        if validation.candidate.simulated is not None:
            validation.candidate.simulated.know({text.prompt.ids: text.tokens for text in validation.texts})
        speculation = Speculation(validation.candidate.proposer, FixedDraftLength(validation.k))
    return _tokens_per_second(runner, validation, stop_ids, speculation) / plain


def median_and_range(speedups: Sequence[float]) -> Interval:
    """Median, minimum and maximum of runs."""
    return Interval(statistics.median(speedups), min(speedups), max(speedups))


def _ranked(state: JudgeState, temperature: float) -> list[CostCell]:
    """The best cell of each draft at the smallest batch size, best draft first."""
    point = BenchPoint(temperature, min(state.batch_sizes))
    best: list[tuple[float, CostCell]] = []
    for candidate in state.candidates:
        prediction = state.prediction(candidate.name, temperature)
        cells = [cell for cell in state.cells(candidate.name, temperature) if cell.point == point]
        rated = [(float(prediction.speedups(cell, state.costs)[0]), cell) for cell in cells]
        best += [max(rated, key=lambda pair: pair[0])] if rated else []
    return [cell for _, cell in sorted(best, key=lambda pair: -pair[0])]


def _tokens_per_second(
    runner: Runner, validation: Validation, stop_ids: frozenset[int], speculation: Speculation | None
) -> float:
    """Decoding speed while all rows are in use: a batch that runs dry is a smaller batch."""
    waiting = deque(
        Request(n, text.prompt.ids, text.sampler, Limits(text.most, len(text.prompt.ids) + text.most, stop_ids))
        for n, text in enumerate(validation.texts)
    )
    batch_size = min(validation.point.batch_size, len(validation.texts))
    engine, seconds, n_tokens = Engine(runner, speculation, isolates_failures=True), 0.0, 0
    while True:
        while waiting and len(engine.unfinished) < batch_size:
            engine.submit(waiting.popleft())
            result_of(engine.fill_rows())
        if len(engine.active) < batch_size:
            return n_tokens / seconds
        output = result_of(engine.step())
        seconds += output.seconds
        n_tokens += output.n_tokens
