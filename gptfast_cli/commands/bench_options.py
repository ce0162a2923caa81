"""The options of `gptfast bench` alone, in the panels of its help."""

from typing import Annotated

import typer

from gptfast_cli.options import complete_file, complete_scheme

_SHAPE = "A shape without weights"
_CASES = "What is measured"
_SPEED = "Speed"
_OUTPUT = "Output"


def _complete_shape(incomplete: str) -> list[str | tuple[str, str]]:
    from gptfast_cli.core.decode.known_shapes import KNOWN_SHAPES

    return [*KNOWN_SHAPES, *complete_file(incomplete)]


def _complete_output() -> list[str]:
    return ["csv", "json", "jsonl", "md"]


BatchSizesOption = Annotated[
    str, typer.Option("--batch-size", metavar="1,2,4", rich_help_panel=_CASES, help="Sequences side by side.")
]
PromptLenOption = Annotated[
    str, typer.Option("--prompt-len", metavar="N,...", rich_help_panel=_CASES, help="Tokens of a prompt; 0 is none.")
]
GenLenOption = Annotated[
    str, typer.Option("--gen-len", metavar="N,...", rich_help_panel=_CASES, help="Tokens to generate; 0 is none.")
]
DepthOption = Annotated[
    str, typer.Option("--depth", metavar="N,...", rich_help_panel=_CASES, help="Tokens that stand before these.")
]
RepsOption = Annotated[int, typer.Option("--reps", metavar="N", rich_help_panel=_CASES, help="Repetitions that count.")]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", rich_help_panel=_CASES, help="Of prompts and random weights.")
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
        "--groupsize", metavar="N", show_default="32", rich_help_panel=_SHAPE, help="Elements that share a scale."
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
