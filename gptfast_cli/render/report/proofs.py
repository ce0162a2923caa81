"""Predictions held against real runs, and speculation held against the target alone."""

from gptfast_cli.core.drafts.report import DraftReport, LosslessnessCheck, ValidationRun
from gptfast_cli.render.charts.canvas import round_axis
from gptfast_cli.render.charts.scatter import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Curve,
    ScatterPoint,
    keys,
    scatter,
)
from gptfast_cli.render.intervals import shown, spoken
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.report.tables import (
    figure,
    numbered,
    paragraph,
    section,
    table,
)

_PLAIN = "plain against itself"


def proofs(judgement: DraftReport) -> Element:
    """The runs in a plane and in a table, with the median of their errors."""
    if not judgement.validation_runs:
        return section("proofs", "Predicted and measured", paragraph("Nothing was run for real."))
    median = judgement.median_error
    names = [_name(run) for run in judgement.validation_runs]
    is_numbered = keys(names) != names
    words = "" if median is None else f" The median error of the predictions is {median:.1%}."
    return section(
        "proofs",
        "Predicted and measured",
        paragraph(
            "Cells that were run for real, in turns with plain decoding, each against the prediction for the very "
            f"prompts that were run. Plain decoding against itself shows the noise.{words}"
        ),
        tag(
            "div",
            figure("On the line a prediction is right", _plane(judgement.validation_runs)),
            table(
                "Predicted and measured speed-up",
                ("Draft", "Temperature", "k", "Batch", "Prompts", "Predicted", "Measured", "Error"),
                [_row(n if is_numbered else None, run) for n, run in enumerate(judgement.validation_runs, start=1)],
            ),
            class_="stack" if is_numbered else "pair",  # long names need the whole width
        ),
    )


def certificates(judgement: DraftReport) -> Element:
    """Whether the texts are the target's own, with the numbers that say so."""
    intro = paragraph(
        "Speculation must not change what the target says. Greedy texts must be equal token by token; drawn ones must "
        "follow the same distribution: a p-value under 0.0001 would be a fault."
    )
    if not judgement.losslessness_checks:
        return section("certificates", "Exactness", intro, paragraph("The self-check was not run.", class_="note"))
    return section(
        "certificates",
        "Exactness",
        intro,
        table(
            "Self-check that speculation gives what the target alone gives",
            ("Draft", "Result", "Equal greedy texts", "Texts drawn", "χ²", "Degrees", "p-value"),
            [_certified(certificate) for certificate in judgement.losslessness_checks],
            texts=(0, 1),
        ),
    )


def _plane(runs: tuple[ValidationRun, ...]) -> Element:
    values = [1.0, *(each for p in runs for each in (p.predicted, p.measured.value, p.measured.low, p.measured.high))]
    x = round_axis("predicted", values, LEFT, RIGHT)
    y = round_axis("measured", values, BOTTOM, TOP)
    ends = (x.scale.low, x.scale.high)
    return scatter(
        f"Measured against predicted speed-up of {len(runs)} runs",
        tuple(_spot(key, run) for key, run in zip(keys([_name(run) for run in runs]), runs, strict=True)),
        x,
        y,
        (Curve("", tuple((end, end) for end in ends), "diagonal"),),
    )


def _name(run: ValidationRun) -> str:
    return "plain" if run.draft is None else f"{run.draft}, k {run.k}"


def _spot(key: str, run: ValidationRun) -> ScatterPoint:
    told = f"{_name(run)}, batch {run.batch_size}: predicted {run.predicted:.2f}, measured {spoken(run.measured)}"
    low, high = run.measured.low, run.measured.high
    return ScatterPoint(key, told, run.predicted, run.measured.value, low, high, is_hollow=run.draft is None)


def _row(number: int | None, run: ValidationRun) -> tuple[Child, ...]:
    is_plain = run.draft is None
    return (
        numbered(number, tag("span", run.draft or _PLAIN, class_="soft" if is_plain else "name")),
        f"{run.temperature:g}",
        "\N{EN DASH}" if is_plain else str(run.k),
        str(run.batch_size),
        f"{run.n_prompts:,}",
        f"{run.predicted:.2f}×",
        shown(run.measured, "×"),
        f"{run.error:+.1%}".replace("-", "\N{MINUS SIGN}"),
    )


def _certified(certificate: LosslessnessCheck) -> tuple[Child, ...]:
    holds = certificate.holds
    return (
        tag("span", certificate.draft, class_="name"),
        tag("span", "exact" if holds else "not exact", class_="basis on-policy" if holds else "basis fault"),
        f"{certificate.n_equal:,} of {certificate.n_texts:,}",
        f"{certificate.n_draws:,}",
        f"{certificate.chi_square:.1f}",
        f"{certificate.degrees:,}",
        f"{certificate.p_value:.2g}",
    )
