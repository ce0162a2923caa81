"""The options of `gptfast bench` alone, in the panels of its help."""

from typing import Annotated

import typer

from gptfast_cli.numbers import (
    LARGEST_SEED,
    Integer,
    IntegerList,
    Integers,
    Number,
)
from gptfast_cli.options import complete_file, complete_model, complete_scheme

_SHAPE = "A shape without weights"
_PLAN = "A plan, without loading or measuring"
_CASES = "What is measured"
_SPEED = "Speed"
_OUTPUT = "Output"


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

BatchSizesOption = Annotated[
    IntegerList,
    typer.Option(
        "--batch-size",
        parser=Integers(Integer(1)),
        metavar="1,2,4",
        rich_help_panel=_CASES,
        help="Sequences side by side.",
    ),
]
PromptLenOption = Annotated[
    IntegerList,
    typer.Option(
        "--prompt-len",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=_CASES,
        help="Tokens of a prompt; 0 is none.",
    ),
]
GenLenOption = Annotated[
    IntegerList,
    typer.Option(
        "--gen-len",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=_CASES,
        help="Tokens to generate; 0 is none.",
    ),
]
DepthOption = Annotated[
    IntegerList,
    typer.Option(
        "--depth",
        parser=Integers(Integer()),
        metavar="N,...",
        rich_help_panel=_CASES,
        help="Tokens that stand before these.",
    ),
]
RepsOption = Annotated[
    int, typer.Option("--reps", parser=Integer(1), metavar="N", rich_help_panel=_CASES, help="Repetitions that count.")
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        parser=Integer(0, LARGEST_SEED),
        metavar="N",
        rich_help_panel=_CASES,
        help="Of prompts and random weights.",
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="SHAPE",
        autocompletion=_complete_shape,
        rich_help_panel=_SHAPE,
        help="llama-2-7b, a config.json, or layers=4,dim=768,heads=12,ffn=3072,vocab=32000.",
    ),
]
ModeOption = Annotated[
    str,
    typer.Option(
        "--mode", metavar="SCHEME", autocompletion=complete_scheme, rich_help_panel=_SHAPE, help="Scheme of its layers."
    ),
]
GroupSizeOption = Annotated[
    int | None,
    typer.Option(
        "--groupsize",
        parser=Integer(1),
        metavar="N",
        show_default="32",
        rich_help_panel=_SHAPE,
        help="Elements that share a scale.",
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="SCHEME",
        autocompletion=complete_scheme,
        show_default="int8, or plain",
        rich_help_panel=_SHAPE,
        help="Scheme of the output head.",
    ),
]
EmbeddingsOption = Annotated[
    str | None,
    typer.Option(
        "--embeddings",
        metavar="SCHEME",
        autocompletion=complete_scheme,
        show_default="int8, or plain",
        rich_help_panel=_SHAPE,
        help="Scheme of the embedding.",
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="MODEL|SHAPE",
        autocompletion=_complete_planned,
        rich_help_panel=_PLAN,
        help="Whether it fits, and how fast it should be, on this machine or as the figures below describe one.",
    ),
]
TpOption = Annotated[
    IntegerList | None,
    typer.Option(
        "--tp",
        parser=Integers(Integer(1)),
        metavar="1,2,4",
        show_default="1, or as many as torchrun has started",
        rich_help_panel=_CASES,
        help="Processes that share the model, or devices of a plan.",
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
        help="That a device reads of its memory.",
    ),
]
DeviceMemoryOption = Annotated[
    float | None,
    typer.Option(
        "--device-memory",
        parser=Number(is_closed=False),
        metavar="GB",
        show_default="what is free here",
        rich_help_panel=_PLAN,
        help="That a device has.",
    ),
]
LinkBandwidthOption = Annotated[
    float | None,
    typer.Option(
        "--link-bandwidth",
        parser=Number(is_closed=False),
        metavar="GB/S",
        rich_help_panel=_PLAN,
        help="That a device sends to all others together.",
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
        help="Microseconds of a message, however small.",
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
        help="Share of the bandwidth that decoding reaches, 0 to 1: the MBU of a measurement.",
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", rich_help_panel=_SPEED, help="Compile the decode step of each batch size.")
]
CompilePrefillOption = Annotated[
    bool, typer.Option("--compile-prefill", rich_help_panel=_SPEED, help="Compile the prefill too.")
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="FORMAT",
        autocompletion=_complete_output,
        show_default="a table",
        rich_help_panel=_OUTPUT,
        help="md, csv, json or jsonl.",
    ),
]
