"""What a comparison comes to: a Markdown table for people, and JSON with every pair for whoever doubts it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paired_runs import LARGEST_DRIFT, Pairs
from shared_machine import LARGEST_OTHERS

_HEADINGS = (
    "shape",
    "peer / ours",
    "MB a step",
    "test",
    "peer tok/s",
    "ours tok/s",
    "ours / peer [least..largest]",
    "pairs (set aside)",
    "probe GB/s",
)
_LINE = "| {} |\n"
_TELLING = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "i8mm")
"""Instruction sets that a reader looks for; the record has all of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One test of one model on both sides; bytes are those of the weights that each step reads: not the embedding's."""

    shape: str
    peer_kind: str
    our_kind: str
    test: str
    peer_bytes: int
    our_bytes: int
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What has to stand beside the numbers; None where the machine does not say."""

    command: str
    cpu: str | None
    n_threads: int
    instruction_sets: tuple[str, ...]
    os: str
    python: str
    torch: str
    gptfast: str
    commit: str | None
    peer: str
    peer_settings: dict[str, Any]
    compiler: str
    date: str


def markdown(lines: Sequence[Line], around: Circumstances) -> str:
    """The table, and a paragraph below it; a test without a pair that counts has dashes."""
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *(_cells(line) for line in lines)]
    table = "".join(_LINE.format(" | ".join(row)) for row in rows)
    sets = ", ".join(name for name in _TELLING if name in around.instruction_sets)
    return (
        f"{table}\n"
        f"`{around.command}`\n\n"
        f"{around.n_threads} threads of {around.cpu} ({sets}), {around.os}; "
        f"Python {around.python}, torch {around.torch}, gptfast {around.gptfast}, commit {around.commit}; "
        f"{around.peer} (llama.cpp {around.peer_settings['build_commit']}), {around.compiler}; {around.date}.\n"
        f"Medians of the pairs whose three probes of memory are within {LARGEST_DRIFT:.0%} and during which others had "
        f"at most {LARGEST_OTHERS:.0%} of the processors; the rest are set aside.\n"
    )


def document(lines: Sequence[Line], around: Circumstances) -> dict[str, Any]:
    """Everything, each pair with its ratio and whether it counts."""
    return {
        "circumstances": asdict(around),
        "largest_drift": LARGEST_DRIFT,
        "largest_others": LARGEST_OTHERS,
        "rows": [_row(line) for line in lines],
    }


def _cells(line: Line) -> tuple[str, ...]:
    summary, pairs = line.pairs.summary, line.pairs
    numbers = ("-",) * 3
    if summary is not None:
        spread = f"[{summary.least_ratio:.2f}..{summary.largest_ratio:.2f}]"
        numbers = (_rate(summary.peer_tok_s), _rate(summary.ours_tok_s), f"{summary.ratio:.2f} {spread}")
    return (
        line.shape,
        f"{line.peer_kind} / {line.our_kind}",
        f"{line.peer_bytes / 1e6:,.0f} / {line.our_bytes / 1e6:,.0f}",
        line.test,
        *numbers,
        f"{len(pairs.accepted)} ({pairs.n_rejected})",
        f"{summary.probe_gbps:.1f}" if summary is not None else "-",
    )


def _rate(tok_s: float) -> str:
    return f"{tok_s:,.1f}" if tok_s < 100 else f"{tok_s:,.0f}"


def _row(line: Line) -> dict[str, Any]:
    summary = line.pairs.summary
    return {
        **{name: value for name, value in asdict(line).items() if name != "pairs"},
        "summary": None if summary is None else asdict(summary),
        "pairs": [
            {**asdict(pair), "ratio": pair.ratio, "drift": pair.drift, "is_accepted": pair.is_accepted}
            for pair in line.pairs.pairs
        ],
    }
