"""The commands, one thin module each: options make a request, the request a job, and the job is shown.

Whatever loads PyTorch is imported inside a command's body: help and completion then answer at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptfast_cli.commands.bench import bench
from gptfast_cli.commands.convert import convert
from gptfast_cli.commands.download import download
from gptfast_cli.commands.eval import evaluate
from gptfast_cli.commands.generate import generate
from gptfast_cli.commands.quantize import quantize
from gptfast_cli.commands.speculate import speculate
from gptfast_cli.commands.words import WordsCommand
from gptfast_cli.tree import GptFastCommand


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, the function whose signature is its options, and how its words are read."""

    name: str
    function: Callable[..., Any]
    kind: type[GptFastCommand] = GptFastCommand


COMMANDS = (
    Command("download", download),
    Command("convert", convert),
    Command("quantize", quantize),
    Command("generate", generate),
    Command("speculate", speculate),
    Command("eval", evaluate, WordsCommand),
    Command("bench", bench),
)
"""In the order of a model's life, which is the order of `gptfast --help`."""
