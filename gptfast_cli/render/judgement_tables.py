"""The tables of a judgement that compare drafts: picks, proofs, slices, plain decoding, certificates."""

from collections.abc import Callable
from typing import Final, Literal

from gptfast_cli.core.drafts.report import (
    DraftReport,
    LosslessnessCheck,
    Recommendation,
    Slice,
    ValidationRun,
)
from gptfast_cli.render.judgement_look import (
    NONE,
    ReportStyle,
    agreement,
    ranged,
)
from gptfast_cli.render.numbers import digits, duration
from gptfast_cli.render.tables import Table, short_names

_SLICE_COLUMNS: Final = 24


def pick_table(judgement: DraftReport, look: ReportStyle) -> Table:
    """The best draft and depth of each temperature and batch size."""
    rows = tuple(_pick_row(pick, look) for pick in judgement.recommendations)
    return Table(("temp", "batch", "draft", "k", "speed-up"), rows, ">><>>", n_names=2)


def proof_table(judgement: DraftReport, look: ReportStyle) -> Table:
    """What was predicted and what was measured."""
    headings = ("draft", "temp", "batch", "k", "predicted", "measured", "error")
    rows = tuple(_proof_row(proof, look) for proof in judgement.validation_runs)
    if not look.is_detailed:
        return Table(headings, rows, "<" + ">" * 6, n_names=4)
    rows = tuple((*row, str(proof.n_prompts)) for row, proof in zip(rows, judgement.validation_runs, strict=True))
    return Table((*headings, "prompts"), rows, "<" + ">" * 7, n_names=4)


def slice_table(judgement: DraftReport, kind: Literal["category", "context"], look: ReportStyle) -> Table | None:
    """Alpha over parts of the texts, a column for each; None where there are none."""
    slices = [{each.name: each for each in draft.slices if each.kind == kind} for draft in judgement.drafts]
    names = list(dict.fromkeys(name for of_draft in slices for name in of_draft))
    if not names:
        return None
    rows = tuple(
        (look.called(draft.draft), f"{draft.temperature:g}", *(_slice(of_draft.get(name), look) for name in names))
        for draft, of_draft in zip(judgement.drafts, slices, strict=True)
    )
    headings = ("draft", "temp", *short_names(names, _SLICE_COLUMNS).values())
    return Table(headings, rows, "<" + ">" * (len(headings) - 1), n_names=2)


def plain_table(judgement: DraftReport) -> Table:
    """What the target does without a draft."""
    rows = tuple(
        (
            f"{plain.temperature:g}",
            str(plain.batch_size),
            duration(plain.step_seconds),
            digits(plain.tok_s),
            digits(plain.gbps),
            f"{plain.mbu:.0%}",
        )
        for plain in judgement.plain
    )
    return Table(("temp", "batch", "step", "tok/s", "GB/s", "MBU"), rows, ">" * 6, n_names=2)


def certificate_table(judgement: DraftReport, look: ReportStyle) -> Table:
    """Whether the text is that of the target."""
    headings = ("draft", "greedy equal", "draws", "chi-square", "df", "p", "holds")
    rows = tuple(_certificate_row(certificate, look) for certificate in judgement.losslessness_checks)
    return Table(headings, rows, "<" + ">" * 6)


def _pick_row(pick: Recommendation, look: ReportStyle) -> tuple[str, ...]:
    at = (f"{pick.temperature:g}", str(pick.batch_size))
    if pick.draft is None or pick.speedup is None:
        return *at, "no clear gain" if pick.is_unclear else "none", NONE, NONE
    return *at, look.called(pick.draft), str(pick.k), ranged(pick.speedup)


def _proof_row(proof: ValidationRun, look: ReportStyle) -> tuple[str, ...]:
    return (
        "plain decoding" if proof.draft is None else look.called(proof.draft),
        f"{proof.temperature:g}",
        str(proof.batch_size),
        str(proof.k) if proof.k else NONE,
        digits(proof.predicted),
        ranged(proof.measured),
        f"{proof.error:+.1%}",
    )


def _slice(part: Slice | None, look: ReportStyle) -> str:
    if part is None:
        return NONE
    write: Callable[[float], str] = agreement
    return ranged(part.alpha, write) if look.is_detailed else write(part.alpha.value)


def _certificate_row(certificate: LosslessnessCheck, look: ReportStyle) -> tuple[str, ...]:
    return (
        look.called(certificate.draft),
        f"{certificate.n_equal} of {certificate.n_texts}",
        f"{certificate.n_draws:,}",
        f"{certificate.chi_square:.1f}",
        str(certificate.degrees),
        f"{certificate.p_value:.2g}",
        "yes" if certificate.holds else "NO",
    )
