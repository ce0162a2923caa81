"""The options of `gptfast generate` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.commands.prompt import DEFAULT
from gptfast_cli.numbers import (
    LARGEST_SEED,
    Integer,
    IntegerOrAuto,
    Number,
)
from gptfast_cli.options import complete_draft_or_advice, complete_file

_PROMPT = "Prompt"
_CHAT = "Chat"
_FILE = "A file of prompts"
_LENGTH = "Length and number"
_SAMPLING = "Sampling"
_SPEED = "Speed"

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=DEFAULT,
        help="The text to continue, or a message to a chat model; - or nothing reads what is piped in.",
    ),
]
PromptFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", autocompletion=complete_file, rich_help_panel=_PROMPT, help="Read the prompt from a file."
    ),
]
PromptIdsOption = Annotated[
    str | None, typer.Option(metavar="1,2,3", rich_help_panel=_PROMPT, help="Give the prompt as token ids.")
]
PromptLengthOption = Annotated[
    int | None,
    typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_PROMPT, help="Make up a prompt of N tokens."),
]
PromptCacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_PROMPT,
        help="Keep the keys and values of the prompt, and start from them next time.",
    ),
]
ShowPromptOption = Annotated[
    bool, typer.Option("--show-prompt", rich_help_panel=_PROMPT, help="Show the exact text that the model is given.")
]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", rich_help_panel=_CHAT, help="The system message.")]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=complete_file,
        show_default="the model's",
        rich_help_panel=_CHAT,
        help="Another template of the model, or a file.",
    ),
]
InteractiveOption = Annotated[
    bool, typer.Option("--interactive", rich_help_panel=_CHAT, help="Talk turn by turn; only new tokens are fed.")
]
PromptsFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_FILE,
        help="Answer each row of a JSON-lines file, as JSON lines.",
    ),
]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="none",
        rich_help_panel=_FILE,
        help="Spread the rows over N independent engines, each with a GPU or a part of the cores.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        show_default="stdout",
        rich_help_panel=_FILE,
        help="Write the answers to a file; run again, it goes on where it stopped.",
    ),
]
UnorderedOption = Annotated[
    bool, typer.Option("--unordered", rich_help_panel=_FILE, help="Write each answer as soon as it is there.")
]
MaxNewTokensOption = Annotated[
    int,
    typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_LENGTH, help="Most tokens to generate for a sample."),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", rich_help_panel=_LENGTH, help="End before this text, or at this special token; may be repeated."
    ),
]
IgnoreEosOption = Annotated[
    bool, typer.Option("--ignore-eos", rich_help_panel=_LENGTH, help="Go on after an end-of-sequence token.")
]
MaxContextOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="the model's",
        rich_help_panel=_LENGTH,
        help="Most tokens, prompt included.",
    ),
]
NumSamplesOption = Annotated[
    int, typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_LENGTH, help="Continue the prompt N times.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1),
        metavar="N",
        show_default="all; 8 for a file",
        rich_help_panel=_LENGTH,
        help="Samples made side by side.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(parser=Number(), metavar="T", rich_help_panel=_SAMPLING, help="0 always takes the likeliest token."),
]
TopKOption = Annotated[
    int,
    typer.Option(
        parser=Integer(), metavar="K", rich_help_panel=_SAMPLING, help="Draw from the K likeliest tokens; 0 is all."
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        parser=Number(0, 1, is_closed=False),
        metavar="P",
        rich_help_panel=_SAMPLING,
        help="Draw from the likeliest that sum up to P.",
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        parser=Number(0, 1), metavar="P", rich_help_panel=_SAMPLING, help="Drop those under P times the likeliest."
    ),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(parser=Number(is_closed=False), metavar="R", rich_help_panel=_SAMPLING, help="Above 1, repeat less."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(0, LARGEST_SEED),
        metavar="N",
        show_default="a fresh one",
        rich_help_panel=_SAMPLING,
        help="The same seed gives the same text on one backend.",
    ),
]
LogprobsOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(),
        metavar="N",
        rich_help_panel=_SAMPLING,
        help="In JSON: the log-probability of each token, and of the N likeliest.",
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        metavar="DRAFT",
        autocompletion=complete_draft_or_advice,
        rich_help_panel=_SPEED,
        help="A smaller MODEL, self:int8, ngram, or auto: what speculate --save-advice found best.",
    ),
]
SpeculateKOption = Annotated[
    str,
    typer.Option(
        parser=IntegerOrAuto(Integer()),
        metavar="N",
        rich_help_panel=_SPEED,
        help="Tokens to draft at a time; auto takes what pays.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", rich_help_panel=_SPEED, help="Compile the decode step; the first time takes a minute."),
]
CompilePrefillOption = Annotated[
    bool, typer.Option("--compile-prefill", rich_help_panel=_SPEED, help="Compile the prefill too.")
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_SPEED,
        help="Write a trace to open in Perfetto: .json or .json.gz.",
    ),
]
VerifyWeightsOption = Annotated[
    bool, typer.Option("--verify-weights", help="Compare the weights with their SHA-256 before they are loaded.")
]
