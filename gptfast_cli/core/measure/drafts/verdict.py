"""What to use, in one line: for each batch size the draft and depth that gain most, or none."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from gptfast_cli.core.measure.drafts.judgement import DraftJudgement, Interval, Pick, Proof

LEAST_GAIN = 1.03
"""A speed-up that is worth a draft: less is lost again in what changes from one text to the next."""


def picks_of(drafts: Sequence[DraftJudgement]) -> tuple[Pick, ...]:
    """The best cell for each temperature and batch size; none where no draft is faster for sure, and by enough."""
    picks = []
    for temperature in dict.fromkeys(draft.temperature for draft in drafts):
        alike = [draft for draft in drafts if draft.temperature == temperature]
        for batch_size in dict.fromkeys(cell.batch_size for draft in alike for cell in draft.grid):
            paying = [
                Pick(temperature, batch_size, draft.draft, cell.k, cell.predicted)
                for draft in alike
                for cell in draft.grid
                if cell.batch_size == batch_size and cell.predicted.value >= LEAST_GAIN and cell.predicted.low > 1
            ]
            none = Pick(temperature, batch_size, None, None, None)
            picks.append(max(paying, key=lambda pick: pick.speedup.value if pick.speedup else 0.0, default=none))
    return tuple(picks)


def verdict_of(picks: Sequence[Pick]) -> str:
    """In one line, temperature by temperature."""
    if not picks:
        return "nothing is known yet"
    temperatures = dict.fromkeys(pick.temperature for pick in picks)
    parts = []
    for temperature in temperatures:
        clauses = _clauses([pick for pick in picks if pick.temperature == temperature])
        where = f"at temperature {temperature:g} " if len(temperatures) > 1 else ""
        parts.append(where + "; ".join(clauses))
    return "; ".join(parts)


def median_error(proofs: Sequence[Proof]) -> float | None:
    """Of all that a draft took part in, without their signs."""
    errors = sorted(abs(proof.error) for proof in proofs if proof.draft is not None)
    if not errors:
        return None
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2


def _clauses(picks: Sequence[Pick]) -> Iterator[str]:
    """Batch sizes that ask for the same draft stand together, by their first and last."""
    groups = [list(group) for _, group in groupby(picks, key=lambda pick: pick.draft)]
    for group in groups:
        first, last = group[0], group[-1]
        if first.draft is None:
            yield f"no draft {'from' if group is groups[-1] else 'at'} batch {first.batch_size}"
            continue
        assert first.speedup is not None
        assert last.speedup is not None
        clause = f"use {first.draft}, k = {first.k}: {_shown(first.speedup)} at batch {first.batch_size}"
        if last is not first:
            clause += f", k = {last.k}: {last.speedup.value:.2f}x at batch {last.batch_size}"
        yield clause


def _shown(speedup: Interval) -> str:
    return f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
