"""The options of `gptfast quantize` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.core.quantize.mode import modes, roundings_by_name
from gptfast_cli.numbers import Integer, Number
from gptfast_cli.options import complete_file, complete_folder, complete_scheme

_CHOICE = "Layer by layer"
_CALIBRATION = "Text to learn from, for gptq and for targets"


def _complete_mode() -> list[str]:
    return modes(complete_scheme())


def _complete_rounding() -> list[str]:
    return list(roundings_by_name())


def _complete_group_size() -> list[str]:
    return ["32", "64", "128", "256"]


def _complete_calibration(incomplete: str) -> list[str | tuple[str, str]]:
    return ["bundled", *complete_file(incomplete)]


ModeOption = Annotated[
    str,
    typer.Option(
        metavar="SCHEME",
        autocompletion=_complete_mode,
        help="Scheme of the layers: int8 or int4; int4-gptq is int4 with --rounding gptq.",
    ),
]
GroupSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        autocompletion=_complete_group_size,
        show_default="32, where the scheme has groups",
        help="Weights that share a scale: 32, 64, 128 or 256.",
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEME", autocompletion=complete_scheme, show_default="int8", help="Scheme of the output head."
    ),
]
EmbeddingsOption = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEME", autocompletion=complete_scheme, show_default="int8", help="Scheme of the embeddings."
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        metavar="CHOICE",
        rich_help_panel=_CHOICE,
        show_default="--mode for all",
        help="Schemes of single layers: 0-3=int8,*=int4.",
    ),
]
TargetSizeOption = Annotated[
    float | None,
    typer.Option(
        parser=Number(is_closed=False),
        metavar="GB",
        rich_help_panel=_CHOICE,
        help="Give each layer its scheme so that the weights take no more than this, and lose least.",
    ),
]
TargetKldOption = Annotated[
    float | None,
    typer.Option(
        parser=Number(is_closed=False),
        metavar="NATS",
        rich_help_panel=_CHOICE,
        help="Give each layer its scheme so that the model loses no more than this, and is smallest.",
    ),
]
RoundingOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=_complete_rounding,
        show_default="nearest",
        help="How integers are chosen: nearest, search or gptq.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        autocompletion=complete_folder,
        show_default="the store",
        help="Where to write the checkpoint.",
    ),
]
FidelityTextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        show_default="the bundled one",
        help="Measure what was lost on this text.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        autocompletion=_complete_calibration,
        rich_help_panel=_CALIBRATION,
        show_default="bundled",
        help="The text to learn from.",
    ),
]
CalibrationTasksOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", rich_help_panel=_CALIBRATION, help="Learn from tasks of lm_eval: wikitext."),
]
CalibrationLimitOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        rich_help_panel=_CALIBRATION,
        show_default="12 tokens a column",
        help="How many texts to learn from.",
    ),
]
CalibrationSeqLengthOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(2),
        metavar="N",
        rich_help_panel=_CALIBRATION,
        show_default="512",
        help="Tokens of a text; a longer one is cut into several.",
    ),
]
PercdampOption = Annotated[
    float | None,
    typer.Option(
        parser=Number(is_closed=False),
        metavar="SHARE",
        rich_help_panel=_CALIBRATION,
        show_default="0.01",
        help="Damping of the Hessian, as a share of its mean diagonal.",
    ),
]
BlocksizeOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        rich_help_panel=_CALIBRATION,
        show_default="128",
        help="Columns after which errors are passed on to all that follow.",
    ),
]
