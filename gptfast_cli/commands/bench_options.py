"""The options of `gptfast bench` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.numbers import (
    LARGEST_SEED,
    Integer,
    IntegerList,
    Integers,
    Number,
)
from gptfast_cli.options import (
    CASES,
    MACHINE,
    OUTPUT,
    complete_file,
    complete_model,
    complete_scheme,
    group_size_option,
    scheme_option,
)

_SHAPE = "Shape with random weights"
_PLAN = "Plan: predicted size and speed, without loading"


def _complete_shape(incomplete: str) -> list[str | tuple[str, str]]:
    from gptfast_cli.core.engine.shapes import KNOWN_SHAPES

    return [*KNOWN_SHAPES, *complete_file(incomplete)]


def _complete_planned(incomplete: str) -> list[str | tuple[str, str]]:
    return [*_complete_shape(incomplete), *complete_model(incomplete)]


def _complete_output() -> list[str]:
    return ["csv", "json", "jsonl", "md"]


ONE = IntegerList("1", (1,))
PROMPT_LENS = IntegerList("512", (512,))
GEN_LENS = IntegerList("128", (128,))
DEPTHS = IntegerList("0", (0,))

PromptLenOption = Annotated[
    IntegerList,
    typer.Option(
        "--prompt-len",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=CASES,
        help="Prompt lengths; 0: no prefill test.",
    ),
]
GenLenOption = Annotated[
    IntegerList,
    typer.Option(
        "--gen-len",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=CASES,
        help="Numbers of generated tokens; 0: no decode test.",
    ),
]
DepthOption = Annotated[
    IntegerList,
    typer.Option(
        "--depth",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=CASES,
        help="Tokens already in the KV cache.",
    ),
]
RepsOption = Annotated[
    int,
    typer.Option("--reps", parser=Integer(1), metavar="N", rich_help_panel=CASES, help="Number of timed repetitions."),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        parser=Integer(0, LARGEST_SEED),
        metavar="N",
        rich_help_panel=CASES,
        help="Random seed of prompts and weights.",
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="SHAPE",
        autocompletion=_complete_shape,
        rich_help_panel=_SHAPE,
        help="SHAPE: llama-2-7b, a config.json, or layers=4,dim=768,heads=12,ffn=3072,vocab=32000.",
    ),
]
ModeOption = Annotated[
    str,
    typer.Option(
        "--mode", metavar="SCHEME", autocompletion=complete_scheme, rich_help_panel=_SHAPE, help="Scheme of the layers."
    ),
]
GroupSizeOption = Annotated[int | None, group_size_option(_SHAPE)]
HeadOption = Annotated[str | None, scheme_option("output head", _SHAPE)]
EmbeddingsOption = Annotated[str | None, scheme_option("embeddings", _SHAPE)]
PlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="MODEL|SHAPE",
        autocompletion=_complete_planned,
        rich_help_panel=_PLAN,
        help="Predict whether a model fits and how fast it is, on this machine or on the hardware below.",
    ),
]
TpOption = Annotated[
    IntegerList | None,
    typer.Option(
        "--tp",
        parser=Integers(Integer(1)),
        metavar="1,2,4",
        show_default="1, or the ranks that torchrun started",
        rich_help_panel=MACHINE,
        help="Tensor parallelism: processes that share the model, or devices of a plan.",
    ),
]
DeviceBandwidthOption = Annotated[
    float | None,
    typer.Option(
        "--device-bandwidth",
        parser=Number(is_closed=False),
        metavar="GB/S",
        show_default="this machine's",
        rich_help_panel=_PLAN,
        help="Memory bandwidth of each device, GB/s.",
    ),
]
DeviceMemoryOption = Annotated[
    float | None,
    typer.Option(
        "--device-memory",
        parser=Number(is_closed=False),
        metavar="GB",
        show_default="free memory of this machine",
        rich_help_panel=_PLAN,
        help="Memory of each device, GB.",
    ),
]
LinkBandwidthOption = Annotated[
    float | None,
    typer.Option(
        "--link-bandwidth",
        parser=Number(is_closed=False),
        metavar="GB/S",
        rich_help_panel=_PLAN,
        help="Link bandwidth of each device to all others together, GB/s.",
    ),
]
LinkLatencyOption = Annotated[
    float | None,
    typer.Option(
        "--link-latency",
        parser=Number(),
        metavar="US",
        show_default="10",
        rich_help_panel=_PLAN,
        help="Latency of a message, in microseconds.",
    ),
]
EfficiencyOption = Annotated[
    float | None,
    typer.Option(
        "--efficiency",
        parser=Number(0, 1, is_closed=False),
        metavar="SHARE",
        show_default="by scheme and layer",
        rich_help_panel=_PLAN,
        help="Fraction of the memory bandwidth that decoding reaches (MBU), 0 to 1.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="FORMAT",
        autocompletion=_complete_output,
        show_default="a table",
        rich_help_panel=OUTPUT,
        help="Format: md, csv, json or jsonl.",
    ),
]
CompareOption = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=OUTPUT,
        help="Older --json or --output jsonl file: show the ratio of each row's speed, with a 95 % interval.",
    ),
]
FailAboveOption = Annotated[
    float | None,
    typer.Option(
        "--fail-above",
        parser=Number(0, 100),
        metavar="PERCENT",
        show_default="never",
        rich_help_panel=OUTPUT,
        help="With --compare: exit with 1 if a row is slower by more than this.",
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=OUTPUT,
        help="Write a bar chart of the rows to this .svg file.",
    ),
]
