"""The recommendation: for each temperature and batch size the draft and draft length that gain most, or none."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from gptfast_cli.core.drafts.report import DraftResult, GridCell, Interval, Noise, Recommendation, ValidationRun

LEAST_GAIN = 1.03
"""Minimum predicted speed-up to recommend a draft: less is within the variation between texts."""

_WIDEST = 0.3  # maximum width of the interval, as a share of the value
_TOLERANCE = 0.95  # of the speed-up that a neighbouring k implies: less is noise
_AS_GOOD = 0.98  # of the best speed-up: the smallest such k is recommended, as it wastes least on harder text


def recommendations_of(drafts: Sequence[DraftResult]) -> tuple[Recommendation, ...]:
    """The best cell for each temperature and batch size; no draft where no gain is clear and large enough."""
    recommendations = []
    for temperature in dict.fromkeys(draft.temperature for draft in drafts):
        alike = [draft for draft in drafts if draft.temperature == temperature]
        for batch_size in dict.fromkeys(cell.batch_size for draft in alike for cell in draft.grid):
            rows = {each.draft: [cell for cell in each.grid if cell.batch_size == batch_size] for each in alike}
            recommendations.append(_recommendation(temperature, batch_size, rows))
    return tuple(recommendations)


def verdict_of(recommendations: Sequence[Recommendation], noise: Noise | None = None) -> str:
    """The recommendation as text: one line for each temperature, after a warning where noise is high."""
    if not recommendations:
        return "Nothing was measured yet"
    lines = [noise_warning(noise)] if noise is not None and noise.is_high else []
    temperatures = dict.fromkeys(recommendation.temperature for recommendation in recommendations)
    for temperature in temperatures:
        advice = "; ".join(
            _clauses(
                [recommendation for recommendation in recommendations if recommendation.temperature == temperature]
            )
        )
        line = f"temperature {temperature:g}: {advice}" if len(temperatures) > 1 else advice
        lines.append(line[0].upper() + line[1:])
    return "\n".join(lines)


def noise_warning(noise: Noise) -> str:
    """The warning of high noise."""
    return f"Noisy machine: equal runs of plain decoding differ by {noise.spread:.0%}. The results are approximate"


def median_error(validation_runs: Sequence[ValidationRun]) -> float | None:
    """Median absolute error of the validation runs with a draft."""
    errors = sorted(abs(run.error) for run in validation_runs if run.draft is not None)
    if not errors:
        return None
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2


def _recommendation(temperature: float, batch_size: int, rows: dict[str, list[GridCell]]) -> Recommendation:
    """The pick from each draft's cells of one temperature and batch size."""
    gains = [(name, cell) for name, row in rows.items() for cell in row if cell.predicted.value >= LEAST_GAIN]
    clear = [(name, cell) for name, cell in gains if _is_clear(cell.predicted)]
    if not clear:
        return Recommendation(temperature, batch_size, None, None, None, is_unclear=bool(gains))
    clear = [(name, cell) for name, cell in clear if _is_on_plateau(cell, rows[name])] or clear
    draft, best = max(clear, key=lambda each: each[1].predicted.value)
    as_good = (c for name, c in clear if name == draft and c.predicted.value >= _AS_GOOD * best.predicted.value)
    shortest = min(as_good, key=lambda cell: cell.k)
    return Recommendation(temperature, batch_size, draft, shortest.k, shortest.predicted)


def _is_clear(speedup: Interval) -> bool:
    return speedup.low > 1 and speedup.high - speedup.low <= _WIDEST * speedup.value


def _is_on_plateau(cell: GridCell, row: Sequence[GridCell]) -> bool:
    """Whether the speed-ups of k - 1 and k + 1 are consistent with that of k, where they are known.

    A round of k - 1 has at least k / (k + 1) of the tokens of a round of k and takes no longer; one of k + 1 has at
    least as many tokens, and a token more to draft and to verify.
    """
    by_k = {each.k: each.predicted.value for each in row}
    implied = {cell.k - 1: cell.k / (cell.k + 1), cell.k + 1: (cell.k + 1) / (cell.k + 2)}
    return all(by_k[k] >= _TOLERANCE * share * cell.predicted.value for k, share in implied.items() if k in by_k)


def _clauses(recommendations: Sequence[Recommendation]) -> Iterator[str]:
    """Group consecutive batch sizes with the same draft; name the first and the last."""
    groups = [
        list(group)
        for _, group in groupby(
            recommendations, key=lambda recommendation: (recommendation.draft, recommendation.is_unclear)
        )
    ]
    for group in groups:
        first, last = group[0], group[-1]
        if first.draft is None:
            yield f"no {'clear gain' if first.is_unclear else 'draft'} {_where(group, is_last=group is groups[-1])}"
            continue
        assert first.speedup is not None
        assert last.speedup is not None
        clause = f"use {first.draft}, k = {first.k}: {_shown(first.speedup)} at batch {first.batch_size}"
        if last is not first:
            clause += f", k = {last.k}: {last.speedup.value:.2f}x at batch {last.batch_size}"
        yield clause


def _where(group: Sequence[Recommendation], *, is_last: bool) -> str:
    first, last = group[0].batch_size, group[-1].batch_size
    if is_last:
        return f"from batch {first}"
    return f"at batch {first}" if first == last else f"at batch {first} to {last}"


def _shown(speedup: Interval) -> str:
    return f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
