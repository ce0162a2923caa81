"""The content of the report on draft models: what to use, then why, how sure that is, and at which costs.

Every table, sentence and figure is made here, once; `text` and `html` lay them out.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    LosslessnessCheck,
    PlainDecoding,
    Recommendation,
    ValidationRun,
)
from gptfast_cli.render.charts.plots import point_labels
from gptfast_cli.render.charts.svg import legend
from gptfast_cli.render.numbers import count, digits, duration, size
from gptfast_cli.render.report.about import glossary
from gptfast_cli.render.report.cards import BATCH, DRAFT, TEMPERATURE, K, draft_card, round_table
from gptfast_cli.render.report.figures import (
    best_case,
    compared_figure,
    contenders,
    loss_figure,
    run_names,
    slice_figure,
    validation_figure,
)
from gptfast_cli.render.report.tree import (
    MISSING,
    Block,
    Cell,
    Column,
    Detail,
    Facts,
    Fold,
    Group,
    Holds,
    Legend,
    Name,
    Paragraph,
    Pictured,
    Quoted,
    Ranged,
    Section,
    Soft,
    Speedup,
    Table,
    Words,
)
from gptfast_cli.render.terminal import short_names

_MAX_OPEN_CARDS: Final = 4  # with more drafts, only the recommended ones are unfolded
_MBU_FROM_CACHE: Final = 1.2  # the measured bandwidth is less than 20 % off
_SLICE_NAME: Final = 24  # characters


def sections(report: DraftReport) -> Iterator[Section]:
    """All sections, in the order in which they are read."""
    yield _recommendations(report)
    yield _drafts(report)
    yield from _losses(report)
    yield from _comparison(report)
    yield _validation(report)
    yield from _slices(report)
    yield from _costs(report)
    yield _plain_decoding(report)
    yield _losslessness(report)
    yield from _failed_prompts(report)
    yield glossary()


def temperatures(report: DraftReport) -> list[float]:
    """All temperatures that something was measured at, the lowest first."""
    drafts = {each.temperature for each in report.drafts}
    return sorted(drafts | {each.temperature for each in report.plain})


def _recommendations(report: DraftReport) -> Section:
    sizes = f"{count(report.n_params)} parameters, {report.scheme}, {size(report.n_bytes)}"
    blocks: list[Block] = []
    if report.is_interrupted:  # the page says so at its top
        blocks.append(Pictured(otherwise=(_paragraph("Interrupted: this is what was measured until then."),)))
    blocks.append(_paragraph("Speed-ups are over plain decoding of ", Name(report.target), f" ({sizes})."))
    if report.recommendations:
        columns = (TEMPERATURE, BATCH, DRAFT, K, Column("speed-up", "Speed-up"))
        rows = tuple(_recommendation(pick) for pick in report.recommendations)
        blocks.append(Table("The best draft and k by temperature and batch size", columns, rows, n_names=2))
    else:
        blocks.append(_paragraph("No draft was compared with plain decoding."))
    return Section("picks", "Recommendations", tuple(blocks))


def _recommendation(pick: Recommendation) -> tuple[Cell, ...]:
    at = (f"{pick.temperature:g}", str(pick.batch_size))
    if pick.draft is None or pick.speedup is None:
        draft = Soft("no clear gain") if pick.is_unclear else Soft("none", ": plain decoding is fastest")
        return *at, draft, MISSING, MISSING
    return *at, Name(pick.draft), str(pick.k), Ranged(pick.speedup, "×")


def _drafts(report: DraftReport) -> Section:
    if not report.drafts:
        return Section("drafts", "Drafts", (_paragraph("No draft was judged."),))
    n_drafts = len({each.draft for each in report.drafts})
    picked = {pick.draft for pick in report.recommendations}
    on_page = _paragraph(
        "Predicted speed-up by k and batch size, blue where speculation is faster than plain decoding and orange where "
        "it is slower; the heavy line between them is where it breaks even. A framed cell was measured in a validation "
        "run, with the measured speed-up in bold below the predicted one."
    )
    in_text = _paragraph(
        "Predicted speed-up by k and batch size; ", Speedup(1.23, is_best=True), " is the best of its batch size, ",
        Speedup(0.98), " is slower than plain decoding. tau: tokens per round. overall, conditional: share of the "
        "rounds that accept the k-th drafted token, of all rounds and of those that accepted the tokens before it. "
        "Below, where the time of a round goes at the best k; break-even: the alpha under which it is slower, never "
        "where even a perfect draft is.",
    )  # fmt: skip
    cards = (draft_card(draft, is_open=n_drafts <= _MAX_OPEN_CARDS or draft.draft in picked) for draft in report.drafts)
    return Section("drafts", "Drafts", (Pictured((on_page, Legend(legend())), (in_text,)), *cards))


def _losses(report: DraftReport) -> Iterator[Section]:
    case = best_case(report)
    if case is None:
        return
    is_picked = any(pick.draft is not None for pick in report.recommendations)
    lead = _paragraph(
        "The best recommendation, " if is_picked else "No draft was recommended; the one nearest to it, ",
        Name(str(case)),
        ": were drafting free and verifying no dearer than a plain step, each round would gain τ. "
        f"A plain step takes {duration(case.step_seconds)}, a round {duration(case.cell.cost.total)}.",
    )
    yield Section("losses", "Where the speed-up goes", (lead, loss_figure(case)), Detail.PAGE)


def _comparison(report: DraftReport) -> Iterator[Section]:
    steps = {(plain.temperature, plain.batch_size): plain.step_seconds for plain in report.plain}
    groups = []
    for temperature in temperatures(report):
        found = contenders([draft for draft in report.drafts if draft.temperature == temperature], steps)
        if not found:
            continue
        names = [each.draft.draft for each in found]
        headings = (
            ("Token cost", "Token cost"),
            ("Best speed-up", "Best speed-up"),
            ("k", "k"),
            ("Batch", "Batch"),
        )
        table = Table(
            f"Drafts compared at temperature {temperature:g}",
            (DRAFT, Column("alpha", "α"), *(Column(*each) for each in headings)),
            tuple(
                (
                    Name(each.draft.draft),
                    Ranged(each.draft.alpha),
                    f"{each.cost:.3f}",
                    Ranged(each.best.predicted, "×"),
                    str(each.best.k),
                    str(each.best.batch_size),
                )
                for each in found
            ),
            is_numbered=point_labels(names) != names,
        )
        groups.append(Group((compared_figure(temperature, found), table), "pair", temperature))
    if groups:
        lead = _paragraph(
            "Up is better agreement, left is a cheaper token; the larger a point, the higher its best speed-up at the "
            "smallest batch. Filled points are beaten by no other draft in both. Grey curves: the best speed-up over k "
            "if verifying cost one plain step."
        )
        yield Section("compared", "Drafts compared", (lead, *groups), Detail.PAGE)


def _validation(report: DraftReport) -> Section:
    title = "Validation runs"
    if not report.validation_runs:
        return Section("proofs", title, (_paragraph("No validation runs: the predictions were not measured."),))
    names = run_names(report.validation_runs)
    is_numbered = point_labels(names) != names
    columns = (
        DRAFT,
        TEMPERATURE,
        BATCH,
        K,
        Column("predicted", "Predicted"),
        Column("measured", "Measured"),
        Column("error", "Error"),
        Column("prompts", "Prompts", since=Detail.MARKDOWN),
    )
    rows = tuple(_run(run) for run in report.validation_runs)
    table = Table("Predicted and measured speed-up", columns, rows, n_names=4, is_numbered=is_numbered)
    lead = _paragraph(
        "Validation runs, interleaved with plain decoding, each against the prediction for the very prompts that were "
        "run. Plain decoding against itself shows the noise."
    )
    error = "no median error"
    if report.median_error is not None:
        error = f"median error {report.median_error:.1%} without signs and without plain decoding"
    pair = Group(
        (validation_figure(report.validation_runs), table), "stack" if is_numbered else "pair"
    )  # long names are wide
    remark = _paragraph(f"error = predicted / measured - 1; {error}.")
    return Section("proofs", title, (Pictured((lead, pair), (table,)), remark))


def _run(run: ValidationRun) -> tuple[Cell, ...]:
    return (
        Soft("plain decoding") if run.draft is None else Name(run.draft),
        f"{run.temperature:g}",
        str(run.batch_size),
        str(run.k) if run.k else MISSING,
        digits(run.predicted),
        Ranged(run.measured, "×"),
        f"{run.error:+.1%}",
        str(run.n_prompts),
    )


def _slices(report: DraftReport) -> Iterator[Section]:
    tables = [table for kind in _KINDS if (table := _slice_table(report, kind)) is not None]
    if not tables:
        return
    lead = _paragraph("Alpha over parts of the texts, with 95 % intervals; the dashed line is alpha over all of them.")
    figures = (Group((slice_figure(draft),), temperature=draft.temperature) for draft in report.drafts if draft.slices)
    yield Section(
        "slices",
        "Alpha by category and by context",
        (Pictured((lead, Group(tuple(figures), "figures")), tuple(tables)),),
    )


_KINDS: Final[tuple[Literal["category", "context"], ...]] = ("category", "context")


def _slice_table(report: DraftReport, kind: Literal["category", "context"]) -> Table | None:
    slices = [{each.name: each for each in draft.slices if each.kind == kind} for draft in report.drafts]
    names = list(dict.fromkeys(name for of_draft in slices for name in of_draft))
    if not names:
        return None
    rows = []
    for draft, of_draft in zip(report.drafts, slices, strict=True):
        alphas = (
            Ranged(of_draft[name].alpha, is_alpha=True, since=Detail.MARKDOWN) if name in of_draft else MISSING
            for name in names
        )
        rows.append((Name(draft.draft), f"{draft.temperature:g}", *alphas))
    headings = short_names(names, _SLICE_NAME).values()
    columns = (DRAFT, TEMPERATURE, *(Column(heading, heading) for heading in headings))
    return Table(f"Alpha by {kind}", columns, tuple(rows), n_names=2)


def _costs(report: DraftReport) -> Iterator[Section]:
    if not report.drafts:
        return
    drafts = {draft.draft: draft for draft in reversed(report.drafts)}
    headings = ("Parameters", "Bytes for a token", "Load", "Prefill")
    models = Table(
        "Costs of the drafts",
        (DRAFT, *(Column(heading, heading) for heading in headings)),
        tuple(
            (
                Name(each.draft),
                count(each.n_params),
                size(each.n_bytes),
                duration(each.load_s),
                duration(each.prefill_s),
            )
            for each in reversed(drafts.values())
        ),
    )
    folds = (
        Group((Fold(_about_rounds(each), (round_table(each, _in_order(each.grid)),)),), temperature=each.temperature)
        for each in report.drafts
        if each.grid
    )
    lead = _paragraph(
        "Medians, of a whole batch. Loading and prefill are paid once and are part of no speed-up. Under the "
        "break-even α a draft loses; never: even a perfect one would. TPOT: time between the tokens of one sequence."
    )
    yield Section("costs", "Costs", (lead, models, *folds), Detail.PAGE)


def _about_rounds(draft: DraftResult) -> tuple[Words, ...]:
    return "Rounds of ", Name(draft.draft), f", temperature {draft.temperature:g}"


def _in_order(grid: Sequence[GridCell]) -> list[GridCell]:
    return sorted(grid, key=lambda cell: (cell.batch_size, cell.k))


def _plain_decoding(report: DraftReport) -> Section:
    if not report.plain:
        return Section("plain", "Plain decoding", (_paragraph("It was not measured."),))
    lead = _paragraph(
        "The target alone. tok/s is of all sequences together; MBU is GB/s over the "
        f"{digits(report.bandwidth_gbps)} GB/s that reads of memory reach here. It feeds the prompt of one "
        f"sequence in {duration(report.prefill_s)}."
    )
    headings = ("Step", "tok/s", "GB/s", "MBU")
    columns = (TEMPERATURE, BATCH, *(Column(h.lower() if h == "Step" else h, h) for h in headings))
    rows = tuple(_step(plain) for plain in report.plain)
    table = Table("Plain decoding by temperature and batch size", columns, rows, n_names=2)
    remark = _paragraph("An MBU far over 100 %: the weights stay in the processor's caches, memory is not read.")
    in_cache = any(each.mbu > _MBU_FROM_CACHE for each in report.plain)
    return Section("plain", "Plain decoding", (Pictured((lead,)), table, *((remark,) if in_cache else ())))


def _step(plain: PlainDecoding) -> tuple[Cell, ...]:
    return (
        f"{plain.temperature:g}",
        str(plain.batch_size),
        duration(plain.step_seconds),
        digits(plain.tok_s),
        digits(plain.gbps),
        f"{plain.mbu:.0%}",
    )


def _losslessness(report: DraftReport) -> Section:
    title = "Losslessness checks"
    lead = Pictured(
        (
            _paragraph(
                "Speculation must not change what the target says. Greedy texts must be equal token by token; drawn "
                "ones must follow the same distribution: a p-value under 0.0001 would be a fault."
            ),
        )
    )
    if not report.losslessness_checks:
        return Section("certificates", title, (lead, _paragraph("Not run: --certify runs them.")))
    columns = (
        DRAFT,
        Column("greedy equal", "Equal greedy texts"),
        Column("draws", "Texts drawn"),
        Column("chi-square", "χ²"),
        Column("df", "Degrees of freedom"),
        Column("p", "p-value"),
        Column("holds", "Holds"),
    )
    rows = tuple(_check(check) for check in report.losslessness_checks)
    table = Table("Speculation against the target alone", columns, rows)
    return Section("certificates", title, (lead, table))


def _check(check: LosslessnessCheck) -> tuple[Cell, ...]:
    return (
        Name(check.draft),
        f"{check.n_equal} of {check.n_texts}",
        f"{check.n_draws:,}",
        f"{check.chi_square:.1f}",
        str(check.degrees),
        f"{check.p_value:.2g}",
        Holds(check.holds),
    )


def _failed_prompts(report: DraftReport) -> Iterator[Section]:
    if not report.failed_prompts:
        return
    n_failed = len(report.failed_prompts)
    n_all = report.n_prompts + n_failed
    items = tuple((_listed(names), (Quoted(reason),)) for reason, names in report.failures.items())
    yield Section(
        "failed", "Failed prompts", (_paragraph(f"Left out: {n_failed:,} of {n_all:,} prompts."), Facts(items))
    )


def _listed(names: Sequence[str]) -> tuple[Words, ...]:
    first, *others = names
    return Name(first), *(part for name in others for part in (", ", Name(name)))


def _paragraph(*words: Words) -> Paragraph:
    return Paragraph(words)
