"""The report as one JSON document: drafts under their full names, a number beside the bounds of its interval."""

from typing import Final, TextIO

from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    LosslessnessCheck,
    Noise,
    PlainDecoding,
    Recommendation,
    RoundCost,
    Slice,
    ValidationRun,
)
from gptfast_cli.render.json import Keys, to_document, write_document

_KEYS: Final[Keys] = {
    DraftReport: (
        "verdict interrupted=is_interrupted environment target scheme n_params bytes=n_bytes n_prompts failed_prompts "
        "max_new_tokens seed prefill_s bandwidth_gbps noise picks=recommendations drafts plain "
        "proofs=validation_runs median_error certificates=losslessness_checks"
    ),
    Noise: "* is_high",
    Recommendation: "temperature batch_size draft k speedup+range unclear=is_unclear",
    DraftResult: (
        "draft temperature basis n_tokens n_params bytes=n_bytes load_s prefill_s alpha+range tau+range "
        "acceptance=acceptance_by_position grid slices"
    ),
    GridCell: (
        "k batch_size predicted+range measured+range error ceiling break_even tpot_s=token_seconds tok_s gbps "
        "round_s=cost"
    ),
    RoundCost: "* total",
    Slice: "kind name n_tokens alpha+range",
    PlainDecoding: "temperature batch_size step_s=step_seconds tok_s gbps mbu",
    ValidationRun: "draft temperature k batch_size n_prompts predicted measured+range error",
    LosslessnessCheck: "* holds",
}


def write_json(report: DraftReport, command: str, stream: TextIO) -> None:
    """Write the document; `command` is the command line. Speed-ups are ratios; what was not measured is null."""
    write_document("gptfast.speculate/1", {"command": command, **to_document(report, _KEYS)}, stream)
