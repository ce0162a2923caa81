"""How a command that is still to come answers: in one line that says so, whatever it was called with."""

from typing import Final, NoReturn

from gptfast_cli.core.errors import GptFastError

ANY_ARGUMENTS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings under which a command line of a later version is no usage error."""


def not_built(command: str) -> NoReturn:
    """Raise the error that such a command ends in."""
    raise GptFastError(
        f"`gptfast {command}` is not built yet in this version.",
        "`gptfast download`, `convert`, `quantize`, `generate`, `speculate` and `bench` work.",
    )
