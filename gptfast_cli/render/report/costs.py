"""What everything costs: the models, a round of each depth by its parts, and a plain step."""

from collections.abc import Sequence

from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    PlainDecoding,
)
from gptfast_cli.render.intervals import shown
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.numbers import (
    count,
    digits,
    duration,
    size,
)
from gptfast_cli.render.report.tables import paragraph, section, table
from gptfast_cli.render.report.temperatures import at_temperature

_MODEL = ("Draft", "Parameters", "Bytes for a token", "Load", "Prefill")
_ROUND = (
    "Batch", "k", "Drafting", "Verifying", "Sampling", "Host", "Round", "Speed-up", "Perfect draft", "Break-even α",
    "Between tokens", "tok/s", "GB/s",
)  # fmt: skip
_PLAIN = ("Temperature", "Batch", "Step", "tok/s", "GB/s", "MBU")


def costs(judgement: DraftReport, choices: Sequence[float]) -> Element | None:
    """The drafts themselves, then their rounds, folded up."""
    if not judgement.drafts:
        return None
    models = {judged.draft: judged for judged in reversed(judgement.drafts)}
    return section(
        "costs",
        "Costs",
        paragraph(
            "Medians, of a whole batch. Loading and prefill are paid once and are part of no speed-up. Under the "
            "break-even α a draft loses; a dash says that even a perfect one would."
        ),
        table("Costs of the drafts", _MODEL, [_model(judged) for judged in reversed(models.values())]),
        *(at_temperature(choices, each.temperature, [_rounds(each)]) for each in judgement.drafts if each.grid),
    )


def plain(judgement: DraftReport) -> Element:
    """What speed-ups are ratios over."""
    if not judgement.plain:
        return section("plain", "Plain decoding", paragraph("It was not reached."))
    return section(
        "plain",
        "Plain decoding",
        paragraph(
            "The target alone. tok/s is of all sequences together; MBU is GB/s over the "
            f"{digits(judgement.bandwidth_gbps)} GB/s that reads of memory reach here. It feeds the prompt of one "
            f"sequence in {duration(judgement.prefill_s)}."
        ),
        table(
            "Plain decoding by temperature and batch size", _PLAIN, [_step(each) for each in judgement.plain], texts=()
        ),
    )


def _model(judged: DraftResult) -> tuple[Child, ...]:
    return (
        tag("span", judged.draft, class_="name"),
        count(judged.n_params),
        size(judged.n_bytes),
        duration(judged.load_s),
        duration(judged.prefill_s),
    )


def _rounds(judged: DraftResult) -> Element:
    about = f"{judged.draft}, temperature {judged.temperature:g}"
    rows = [_round(cell) for cell in sorted(judged.grid, key=lambda cell: (cell.batch_size, cell.k))]
    return tag(
        "details",
        tag(
            "summary",
            tag(
                "span", "Rounds of ", tag("span", judged.draft, class_="name"), f", temperature {judged.temperature:g}"
            ),
        ),
        table(f"Costs of a round: {about}", _ROUND, rows, texts=()),
        class_="fold",
    )


def _round(cell: GridCell) -> tuple[Child, ...]:
    parts = (cell.cost.draft, cell.cost.verify, cell.cost.sample, cell.cost.host, cell.cost.total)
    return (
        str(cell.batch_size),
        str(cell.k),
        *(duration(seconds) for seconds in parts),
        shown(cell.predicted, "×"),
        f"{cell.ceiling:.2f}×",
        "\N{EN DASH}" if cell.break_even is None else f"{cell.break_even:.2f}",
        duration(cell.token_seconds),
        digits(cell.tok_s),
        digits(cell.gbps),
    )


def _step(each: PlainDecoding) -> tuple[Child, ...]:
    return (
        f"{each.temperature:g}",
        str(each.batch_size),
        duration(each.step_seconds),
        digits(each.tok_s),
        digits(each.gbps),
        f"{each.mbu:.0%}",
    )
