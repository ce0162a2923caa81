"""A judgement as sections of sentences and tables, in the order that a person needs them: what to use, then why."""

from collections.abc import Iterator
from dataclasses import dataclass

from gptfast_cli.core.drafts.report import DraftReport, DraftResult
from gptfast_cli.render.judgement_grid import cost_table, grid_table
from gptfast_cli.render.judgement_look import ReportStyle, agreement, ranged
from gptfast_cli.render.judgement_tables import (
    certificate_table,
    pick_table,
    plain_table,
    proof_table,
    slice_table,
)
from gptfast_cli.render.numbers import (
    count,
    digits,
    duration,
    size,
)
from gptfast_cli.render.tables import Table, one_line, short_names

_IN_CACHE = 1.2  # an MBU beyond what the probe of the memory may be wrong by


@dataclass(frozen=True, slots=True)
class Section:
    """A title, tables, and what is said before (`opening`) and after them (`remarks`)."""

    title: str
    opening: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


def draft_names(judgement: DraftReport, width: int) -> dict[str, str]:
    """Every draft that the judgement names, and its name in a table."""
    drafts = [
        *(each.draft for each in judgement.drafts),
        *(each.draft for each in judgement.recommendations if each.draft is not None),
        *(each.draft for each in judgement.validation_runs if each.draft is not None),
        *(each.draft for each in judgement.losslessness_checks),
    ]
    return short_names(drafts, width)


def sections(judgement: DraftReport, look: ReportStyle) -> Iterator[Section]:
    """All but the verdict before them and the lines about the measurement after them."""
    yield _picks(judgement, look)
    yield from _drafts(judgement, look)
    yield _proofs(judgement, look)
    yield from _slices(judgement, look)
    yield _plain(judgement)
    yield _certificates(judgement, look)
    yield from _failed_prompts(judgement, look)


def measurement_line(judgement: DraftReport) -> str:
    """What the numbers are of and what their intervals mean."""
    texts = f"{judgement.n_prompts:,} prompt{'' if judgement.n_prompts == 1 else 's'}"
    parts = (
        f"{texts}, {judgement.max_new_tokens:,} new tokens each at most",
        f"seed {judgement.seed}",
        f"memory reads {digits(judgement.bandwidth_gbps)} GB/s",
        f"prefill of a prompt {duration(judgement.prefill_s)}",
        *(() if judgement.noise is None else (f"equal runs differ by {judgement.noise.spread:.0%}",)),
        "[low, high]: 95 of 100 bootstrap samples, by prompt",
    )
    return "; ".join(parts)


def _picks(judgement: DraftReport, look: ReportStyle) -> Section:
    sizes = f"{count(judgement.n_params)} parameters, {judgement.scheme}, {size(judgement.n_bytes)}"
    interrupted = ("Interrupted: this is what was measured until then.",) if judgement.is_interrupted else ()
    opening = (
        *interrupted,
        f"Speed-ups are over plain decoding of {look.quote(one_line(judgement.target))} ({sizes}).",
    )
    if not judgement.recommendations:
        return Section("Best picks", opening, remarks=("No draft was compared with plain decoding.",))
    return Section("Best picks", opening, (pick_table(judgement, look),))


def _drafts(judgement: DraftReport, look: ReportStyle) -> Iterator[Section]:
    if not judgement.drafts:
        yield Section("Drafts", remarks=("No draft was judged.",))
        return
    marks = (
        f"{look.best.format('1.23')} is the best of its batch size, "
        f"{look.loss.format('0.98')} is slower than plain decoding"
    )
    legend = (
        f"Predicted speed-up by k and batch size; {marks}. tau: tokens per round. accepted: how often the k-th drafted "
        "token is, of all rounds and once it is reached. Below, where the time of a round goes at the best k; "
        "break-even: the alpha under which it is slower, never where even a perfect draft is."
    )
    yield Section("Drafts", (legend,))
    for draft in judgement.drafts:
        yield _draft(draft, look)


def _draft(draft: DraftResult, look: ReportStyle) -> Section:
    name = one_line(draft.draft)
    title = f"{look.quote(name)} at temperature {draft.temperature:g}"
    in_tables = () if look.names[draft.draft] == name else (f"In tables: {look.called(draft.draft)}.",)
    opening = (_draft_line(draft), *in_tables)
    if not draft.grid:
        return Section(title, opening, (grid_table(draft, look),), ("Its rounds were not timed.",))
    return Section(title, opening, (grid_table(draft, look), cost_table(draft, look)))


def _draft_line(draft: DraftResult) -> str:
    basis = "assumed, not measured" if draft.basis == "assumed" else f"{draft.basis}, {draft.n_tokens:,} tokens"
    costs = "no parameters"
    if draft.n_params:
        reads = f"{count(draft.n_params)} parameters, {size(draft.n_bytes)} a drafted token"
        costs = f"{reads}; load {duration(draft.load_s)}, prefill {duration(draft.prefill_s)}"
    return f"alpha {ranged(draft.alpha, agreement)} ({basis}); {costs}"


def _proofs(judgement: DraftReport, look: ReportStyle) -> Section:
    if not judgement.validation_runs:
        return Section("Proofs", remarks=("Nothing was run for real: the predictions are not proved.",))
    error = "no median error"
    if judgement.median_error is not None:
        error = f"median error {judgement.median_error:.1%} without signs and without plain decoding"
    remarks = (f"error = predicted / measured - 1; {error}.",)
    return Section("Proofs", (), (proof_table(judgement, look),), remarks)


def _slices(judgement: DraftReport, look: ReportStyle) -> Iterator[Section]:
    tables = (slice_table(judgement, "category", look), slice_table(judgement, "context", look))
    if shown := tuple(table for table in tables if table is not None):
        yield Section("Alpha by category and by context", (), shown)


def _plain(judgement: DraftReport) -> Section:
    if not judgement.plain:
        return Section("Plain decoding", remarks=("It was not measured.",))
    in_cache = any(each.mbu > _IN_CACHE for each in judgement.plain)
    remarks = ("An MBU far over 100 %: the weights stay in the processor's caches, and memory is not what is read.",)
    return Section("Plain decoding", (), (plain_table(judgement),), remarks if in_cache else ())


def _certificates(judgement: DraftReport, look: ReportStyle) -> Section:
    title = "Is the text that of the target?"
    if not judgement.losslessness_checks:
        return Section(title, remarks=("It was not tested: --certify does.",))
    return Section(title, (), (certificate_table(judgement, look),))


def _failed_prompts(judgement: DraftReport, look: ReportStyle) -> Iterator[Section]:
    if not judgement.failed_prompts:
        return
    n_failed = len(judgement.failed_prompts)
    n_all = judgement.n_prompts + n_failed
    reasons = (
        f"{', '.join(look.quote(one_line(name)) for name in names)}: {look.escape(one_line(reason))}"
        for reason, names in judgement.failures.items()
    )
    yield Section("Failed prompts", (f"Left out: {n_failed:,} of {n_all:,} prompts.", *reasons))
