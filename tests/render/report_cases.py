"""Reports of every shape that the page has to cope with, with hostile names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    Interval,
    PositionAcceptance,
    ValidationRun,
)
from gptfast_cli.core.drafts.texts import FailedPrompt
from sample_report import sample_report

NASTY = """</title><script>alert('&"1"')</script>\x1b[31m\udc80"""


def cases() -> dict[str, DraftReport]:
    whole = sample_report()
    return {
        "whole": whole,
        "one of each": one_of_each(whole),
        "nothing reached": replace(
            whole,
            drafts=(),
            plain=(),
            recommendations=(),
            validation_runs=(),
            losslessness_checks=(),
            median_error=None,
            is_interrupted=True,
        ),
        "plain reached": replace(
            whole, drafts=(), recommendations=(), validation_runs=(), losslessness_checks=(), is_interrupted=True
        ),
        "no costs reached": _changed(whole, grid=()),
        "nothing but alpha": _changed(whole, grid=(), acceptance_by_position=(), tau={}, slices=()),
        "ragged grid": replace(
            whole, drafts=tuple(replace(draft, grid=draft.grid[:-3]) for draft in whole.drafts), is_interrupted=True
        ),
        "never accepted": _changed(
            whole, acceptance_by_position=tuple(PositionAcceptance(None if n else 0.0, 0.0) for n in range(8))
        ),
        "no gain": replace(
            _changed(whole, cell=_with_speedup(0.5)),
            recommendations=tuple(replace(pick, draft=None, k=None, speedup=None) for pick in whole.recommendations),
        ),
        "gain everywhere": _changed(whole, cell=_with_speedup(4.0)),
        "no break-even": _changed(whole, cell=lambda cell: replace(cell, break_even=None)),
        "all proved": _changed(whole, cell=lambda cell: replace(cell, measured=cell.predicted)),
        "nothing proved": replace(
            _changed(whole, cell=lambda cell: replace(cell, measured=None)), validation_runs=(), median_error=None
        ),
        "not exact": replace(
            whole, losslessness_checks=(replace(whole.losslessness_checks[0], n_equal=39, p_value=3.2e-7),)
        ),
        "twelve drafts to k 16": twelve(whole),
        "every basis": replace(
            whole,
            drafts=tuple(
                replace(draft, basis=basis)
                for draft, basis in zip(whole.drafts, ("on-policy", "proxy", "assumed") * 2, strict=True)
            ),
        ),
        "failed prompts": replace(
            whole,
            n_prompts=57,
            failed_prompts=(
                FailedPrompt("rows.jsonl:3", "Token id 9999 has no embedding."),
                FailedPrompt("rows.jsonl:5", "The model's logits are NaN."),
                FailedPrompt("rows.jsonl:7", "Token id 9999 has no embedding."),
            ),
        ),
        "nasty names": nasty(whole),
    }


def one_of_each(whole: DraftReport) -> DraftReport:
    draft = whole.drafts[0]
    return replace(
        whole,
        drafts=(
            replace(
                draft,
                grid=draft.grid[:1],
                tau={1: draft.tau[1]},
                acceptance_by_position=draft.acceptance_by_position[:1],
            ),
        ),
        plain=whole.plain[:1],
        recommendations=whole.recommendations[:1],
        validation_runs=whole.validation_runs[:1],
        is_interrupted=True,
    )


def twelve(whole: DraftReport) -> DraftReport:
    """Drafts whose names are long and whose costs and agreement lie close to one another."""
    drafts = tuple(
        _deep(replace(draft, draft=f"organization/a-draft-model-{n + 1}-of-twelve-instruct:int4-g32"), n)
        for draft in (whole.drafts[0], whole.drafts[3])
        for n in range(12)
    )
    best = max(drafts[0].grid, key=lambda cell: cell.predicted.value)
    picks = tuple(
        replace(pick, draft=drafts[0].draft, k=best.k, speedup=best.predicted) for pick in whole.recommendations
    )
    proofs = tuple(
        ValidationRun(
            draft.draft, 0.0, k, 1, 60, 1 + 0.1 * n, Interval(1.02 + 0.1 * n, 1 + 0.1 * n, 1.04 + 0.1 * n), -0.02
        )
        for n, draft in enumerate(drafts[:12])
        for k in (2, 4)
    )
    return replace(whole, drafts=drafts, recommendations=picks, validation_runs=proofs)


def nasty(whole: DraftReport) -> DraftReport:
    return replace(
        whole,
        target=NASTY,
        scheme=NASTY,
        verdict=f"use {NASTY}",
        environment=replace(whole.environment, cpu=NASTY, gpu=NASTY, os=NASTY),
        drafts=tuple(
            replace(draft, draft=NASTY, slices=tuple(replace(each, name=NASTY) for each in draft.slices))
            for draft in whole.drafts
        ),
        recommendations=tuple(replace(pick, draft=NASTY) for pick in whole.recommendations),
        validation_runs=tuple(replace(proof, draft=NASTY) for proof in whole.validation_runs),
        losslessness_checks=tuple(replace(certificate, draft=NASTY) for certificate in whole.losslessness_checks),
        failed_prompts=(FailedPrompt(NASTY, NASTY),),
    )


def _deep(draft: DraftResult, n: int) -> DraftResult:
    alpha = 0.4 + 0.045 * n
    tau = {k: Interval(value := sum(alpha**i for i in range(k + 1)), value * 0.97, value * 1.03) for k in range(1, 17)}
    return replace(
        draft,
        alpha=Interval(alpha, alpha - 0.02, alpha + 0.02),
        tau=tau,
        acceptance_by_position=tuple(PositionAcceptance(alpha, alpha ** (i + 1)) for i in range(16)),
        grid=tuple(_at(cell, k, tau[k], 0.02 * n) for cell in draft.grid if cell.k == 1 for k in range(1, 17)),
    )


def _at(cell: GridCell, k: int, tau: Interval, token_steps: float) -> GridCell:
    step = 0.010 * (1 + cell.batch_size / 50)
    cost = replace(cell.cost, draft=k * token_steps * step, verify=step * (1 + 0.02 * k * cell.batch_size))
    speedup = step / cost.total
    predicted = Interval(tau.value * speedup, tau.low * speedup, tau.high * speedup)
    return replace(cell, k=k, cost=cost, predicted=predicted, ceiling=(k + 1) * speedup)


def _changed(
    whole: DraftReport, *, cell: Callable[[GridCell], GridCell] = lambda cell: cell, **fields: Any
) -> DraftReport:
    changed = (replace(draft, grid=tuple(map(cell, draft.grid))) for draft in whole.drafts)
    return replace(whole, drafts=tuple(replace(draft, **fields) for draft in changed))


def _with_speedup(speedup: float) -> Callable[[GridCell], GridCell]:
    return lambda cell: replace(cell, predicted=Interval(speedup, speedup * 0.9, speedup * 1.1))
