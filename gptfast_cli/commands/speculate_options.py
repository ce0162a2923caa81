"""The options of `gptfast speculate` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.numbers import (
    LARGEST_SEED,
    Integer,
    IntegerList,
    Integers,
    Number,
    NumberList,
    Numbers,
)
from gptfast_cli.options import complete_draft, complete_file

_JUDGED = "What is judged"
_TEXTS = "Texts"
_OUTPUT = "Output"

DEPTHS = IntegerList("1..8", tuple(range(1, 9)))
BATCH_SIZES = IntegerList("1,2,4,8", (1, 2, 4, 8))
TEMPERATURES = NumberList("0,0.8", (0.0, 0.8))

DraftsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--draft",
        metavar="DRAFT",
        autocompletion=complete_draft,
        show_default="what suggests itself",
        rich_help_panel=_JUDGED,
        help="A MODEL, self:int8, ngram, or a SHAPE such as tinyllama-1.1b:int4; once for each.",
    ),
]
DepthsOption = Annotated[
    IntegerList,
    typer.Option(
        "--k", parser=Integers(Integer(1)), metavar="1..8", rich_help_panel=_JUDGED, help="Tokens that a round drafts."
    ),
]
BatchSizesOption = Annotated[
    IntegerList,
    typer.Option(
        "--batch-size",
        parser=Integers(Integer(1)),
        metavar="1,2,4",
        rich_help_panel=_JUDGED,
        help="Texts side by side.",
    ),
]
TemperaturesOption = Annotated[
    NumberList,
    typer.Option(
        "--temperature",
        parser=Numbers(Number()),
        metavar="0,0.8",
        rich_help_panel=_JUDGED,
        help="Each with texts of its own.",
    ),
]
TopKOption = Annotated[
    int, typer.Option(parser=Integer(), metavar="K", rich_help_panel=_JUDGED, help="As in generate; 0 is off.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        parser=Number(0, 1, is_closed=False), metavar="P", rich_help_panel=_JUDGED, help="As in generate; 1 is off."
    ),
]
MinPOption = Annotated[
    float, typer.Option(parser=Number(0, 1), metavar="P", rich_help_panel=_JUDGED, help="As in generate; 0 is off.")
]
AssumeAlphaOption = Annotated[
    float | None,
    typer.Option(
        parser=Number(0, 1),
        metavar="A",
        rich_help_panel=_JUDGED,
        help="Take this for the chance that a drafted token stays: for a draft that is not trained yet.",
    ),
]
DraftOnlyOption = Annotated[
    bool,
    typer.Option("--draft-only", rich_help_panel=_JUDGED, help="Only measure how fast the one draft is by itself."),
]
RepsOption = Annotated[
    int,
    typer.Option(
        "--reps", parser=Integer(1), metavar="N", rich_help_panel=_JUDGED, help="Times that each cost is measured."
    ),
]
CertifyOption = Annotated[
    bool,
    typer.Option("--certify", rich_help_panel=_JUDGED, help="Check that each draft leaves the target's text as it is."),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        show_default="60 bundled ones",
        rich_help_panel=_TEXTS,
        help='Lines such as {"prompt": "...", "category": "..."}.',
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_TEXTS, help="Take the first N prompts only."),
]
MaxNewTokensOption = Annotated[
    int, typer.Option(parser=Integer(2), metavar="N", rich_help_panel=_TEXTS, help="Tokens of a text, at most.")
]
SeedOption = Annotated[
    int, typer.Option(parser=Integer(0, LARGEST_SEED), metavar="N", rich_help_panel=_TEXTS, help="Of what is drawn.")
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_OUTPUT,
        help="Write a report too: .html, .md or .json.",
    ),
]
SaveAdviceOption = Annotated[
    bool,
    typer.Option("--save-advice", rich_help_panel=_OUTPUT, help="Keep the verdict for generate --draft auto."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", rich_help_panel=_OUTPUT, help="Save advice even if the machine is noisy.")
]
