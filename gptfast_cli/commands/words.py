"""A command one of whose options takes all words up to the next option, as argparse's `nargs="+"` does."""

from typing import Any, Final

from gptfast_cli.tree import GptFastCommand

_TAKES_WORDS: Final = "--tasks"


class WordsCommand(GptFastCommand):
    """`--tasks a b` is read as `--tasks a,b`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # typer has no public name for it
        """See typer's own."""
        return super().parse_args(ctx, joined(args))


def joined(arguments: list[str]) -> list[str]:
    """The arguments with the words behind `--tasks` in one, commas between them."""
    if _TAKES_WORDS not in arguments:
        return arguments
    first = arguments.index(_TAKES_WORDS) + 1
    end = next((n for n in range(first, len(arguments)) if arguments[n].startswith("-")), len(arguments))
    words = [",".join(arguments[first:end])] if end > first else []
    return [*arguments[:first], *words, *arguments[end:]]
