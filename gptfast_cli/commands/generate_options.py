"""The options of `gptfast generate` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.commands.prompt import DEFAULT
from gptfast_cli.numbers import LARGEST_SEED, Integer, IntegerOrAuto, Number
from gptfast_cli.options import (
    CHAT,
    MACHINE,
    SAMPLING,
    SPEED,
    complete_draft_or_advice,
    complete_file,
)

_PROMPT = "Prompt"
_FILE = "File of prompts"
_LENGTH = "Length and number of samples"

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=DEFAULT,
        help="Text to continue, or message to a chat model; -: read stdin. A piped stdin is read without it.",
    ),
]
PromptFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", autocompletion=complete_file, rich_help_panel=_PROMPT, help="Text file of the prompt."
    ),
]
PromptIdsOption = Annotated[
    str | None, typer.Option(metavar="1,2,3", rich_help_panel=_PROMPT, help="Prompt as token ids.")
]
PromptLengthOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1), metavar="N", rich_help_panel=_PROMPT, help="Synthetic prompt of N tokens, for timing."
    ),
]
PromptCacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_PROMPT,
        help="Save the KV cache of the prompt to this file, and reuse it in later runs.",
    ),
]
ShowPromptOption = Annotated[
    bool, typer.Option("--show-prompt", rich_help_panel=_PROMPT, help="Show the prompt after the chat template.")
]
InteractiveOption = Annotated[
    bool, typer.Option("--interactive", rich_help_panel=CHAT, help="Chat turn by turn, reusing the KV cache.")
]
PromptsFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_FILE,
        help="JSON-lines file of prompts; answers are JSON lines.",
    ),
]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="none",
        rich_help_panel=_FILE,
        help="Data parallelism: N processes, each with one GPU or a part of the cores.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        show_default="stdout",
        rich_help_panel=_FILE,
        help="File of the answers; an interrupted run resumes when the command is repeated.",
    ),
]
UnorderedOption = Annotated[
    bool, typer.Option("--unordered", rich_help_panel=_FILE, help="Write answers as they finish, not in file order.")
]
MaxNewTokensOption = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        "-n",
        parser=Integer(1),
        metavar="N",
        rich_help_panel=_LENGTH,
        help="Maximum number of new tokens.",
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", rich_help_panel=_LENGTH, help="Stop before this text or special token; repeatable."),
]
IgnoreEosOption = Annotated[
    bool, typer.Option("--ignore-eos", rich_help_panel=_LENGTH, help="Continue after end-of-sequence tokens.")
]
MaxContextOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="the model's",
        rich_help_panel=_LENGTH,
        help="Maximum context length in tokens, prompt included.",
    ),
]
NumSamplesOption = Annotated[
    int, typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_LENGTH, help="Number of samples of the prompt.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="all samples; 8 for a file",
        rich_help_panel=_LENGTH,
        help="Maximum batch size: samples decoded together.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature",
        "--temp",
        parser=Number(),
        metavar="T",
        rich_help_panel=SAMPLING,
        help="Sampling temperature; 0: greedy.",
    ),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(
        parser=Number(is_closed=False),
        metavar="R",
        rich_help_panel=SAMPLING,
        help="Repetition penalty; 1: off, above 1: less repetition.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(0, LARGEST_SEED),
        metavar="N",
        show_default="random",
        rich_help_panel=SAMPLING,
        help="Random seed; the same seed gives the same text on the same backend.",
    ),
]
LogprobsOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(),
        metavar="N",
        rich_help_panel=SAMPLING,
        help="Log-probabilities of each token and of the N most likely ones; requires --json.",
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        metavar="DRAFT",
        autocompletion=complete_draft_or_advice,
        rich_help_panel=SPEED,
        help="Speculative decoding with a smaller MODEL, self:int8, ngram, or auto (from speculate --save-advice).",
    ),
]
SpeculateKOption = Annotated[
    str,
    typer.Option(
        parser=IntegerOrAuto(Integer()),
        metavar="N",
        rich_help_panel=SPEED,
        help="Draft length: drafted tokens a round, or auto (adaptive).",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=SPEED,
        help="Write a profiler trace for Perfetto: .json or .json.gz.",
    ),
]
VerifyWeightsOption = Annotated[
    bool,
    typer.Option("--verify-weights", rich_help_panel=MACHINE, help="Check the SHA-256 of the weights before loading."),
]
