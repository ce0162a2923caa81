"""A judgement of drafts as one JSON document, whole: drafts under their full names, numbers beside their intervals."""

from dataclasses import asdict
from typing import TextIO

from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    Interval,
    PlainDecoding,
    Recommendation,
    ValidationRun,
)
from gptfast_cli.render.json import finite, write_document


def write_json(judgement: DraftReport, command: str, stream: TextIO) -> None:
    """Write the document; a number that was never measured, or has no bounds, is null."""
    fields = {name: finite(value) for name, value in document(judgement, command).items()}
    write_document("gptfast.speculate/1", fields, stream)


def document(judgement: DraftReport, command: str) -> dict[str, object]:
    """The judgement as JSON values; `command` is what made it. Speed-ups are ratios."""
    return {
        "command": command,
        "verdict": judgement.verdict,
        "interrupted": judgement.is_interrupted,
        "environment": asdict(judgement.environment),
        "target": judgement.target,
        "scheme": judgement.scheme,
        "n_params": judgement.n_params,
        "bytes": judgement.n_bytes,
        "n_prompts": judgement.n_prompts,
        "failed_prompts": [asdict(failed) for failed in judgement.failed_prompts],
        "max_new_tokens": judgement.max_new_tokens,
        "seed": judgement.seed,
        "prefill_s": judgement.prefill_s,
        "bandwidth_gbps": judgement.bandwidth_gbps,
        "noise": None if judgement.noise is None else asdict(judgement.noise) | {"is_high": judgement.noise.is_high},
        "picks": [_pick(pick) for pick in judgement.recommendations],
        "drafts": [_draft(draft) for draft in judgement.drafts],
        "plain": [_plain(plain) for plain in judgement.plain],
        "proofs": [_proof(proof) for proof in judgement.validation_runs],
        "median_error": judgement.median_error,
        "certificates": [
            asdict(certificate) | {"holds": certificate.holds} for certificate in judgement.losslessness_checks
        ],
    }


def _pick(pick: Recommendation) -> dict[str, object]:
    return {
        "temperature": pick.temperature,
        "batch_size": pick.batch_size,
        "draft": pick.draft,
        "k": pick.k,
        **_ranged("speedup", pick.speedup),
        "unclear": pick.is_unclear,
    }


def _draft(draft: DraftResult) -> dict[str, object]:
    return {
        "draft": draft.draft,
        "temperature": draft.temperature,
        "basis": draft.basis,
        "n_tokens": draft.n_tokens,
        "n_params": draft.n_params,
        "bytes": draft.n_bytes,
        "load_s": draft.load_s,
        "prefill_s": draft.prefill_s,
        **_ranged("alpha", draft.alpha),
        "tau": {str(k): tau.value for k, tau in draft.tau.items()},
        "tau_range": {str(k): [tau.low, tau.high] for k, tau in draft.tau.items()},
        "acceptance": [asdict(place) for place in draft.acceptance_by_position],
        "grid": [_cell(cell) for cell in draft.grid],
        "slices": [
            {"kind": part.kind, "name": part.name, "n_tokens": part.n_tokens, **_ranged("alpha", part.alpha)}
            for part in draft.slices
        ],
    }


def _cell(cell: GridCell) -> dict[str, object]:
    return {
        "k": cell.k,
        "batch_size": cell.batch_size,
        **_ranged("predicted", cell.predicted),
        **_ranged("measured", cell.measured),
        "error": cell.error,
        "ceiling": cell.ceiling,
        "break_even": cell.break_even,
        "tpot_s": cell.token_seconds,
        "tok_s": cell.tok_s,
        "gbps": cell.gbps,
        "round_s": asdict(cell.cost) | {"total": cell.cost.total},
    }


def _plain(plain: PlainDecoding) -> dict[str, object]:
    return {
        "temperature": plain.temperature,
        "batch_size": plain.batch_size,
        "step_s": plain.step_seconds,
        "tok_s": plain.tok_s,
        "gbps": plain.gbps,
        "mbu": plain.mbu,
    }


def _proof(proof: ValidationRun) -> dict[str, object]:
    return {
        "draft": proof.draft,
        "temperature": proof.temperature,
        "k": proof.k,
        "batch_size": proof.batch_size,
        "n_prompts": proof.n_prompts,
        "predicted": proof.predicted,
        **_ranged("measured", proof.measured),
        "error": proof.error,
    }


def _ranged(name: str, interval: Interval | None) -> dict[str, object]:
    """The number under its name, its interval under the name and `_range`."""
    if interval is None:
        return {name: None, f"{name}_range": None}
    return {name: interval.value, f"{name}_range": [interval.low, interval.high]}
