"""Work of the harness without its own bars, warnings and processes, and with our errors for its own."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Final

from gptfast_cli.core.errors import GptFastError, NetworkError

_ONE_PROCESS: Final = "DISABLE_MULTIPROC"  # one that is made by forking would have none of the model's threads

_OF_THE_NETWORK: Final = ("Connection", "Connect", "Offline", "Timeout", "LocalEntryNotFound", "MaxRetry")
"""What the names of errors begin with that several libraries raise where a download fails."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let the block say nothing: what matters of it is in its result or its error."""
    processes = os.environ.get(_ONE_PROCESS)
    os.environ[_ONE_PROCESS] = "1"
    disabled = logging.root.manager.disable
    logging.disable()
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if processes is None:
            del os.environ[_ONE_PROCESS]
        else:
            os.environ[_ONE_PROCESS] = processes


@contextlib.contextmanager
def own_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong in a task into one of our errors, in a line that begins with `what`.

    Raises NetworkError where questions cannot be downloaded, else GptFastError.
    """
    try:
        yield
    except GptFastError as error:
        error.message = f"{what}: {error.message}"
        raise
    except Exception as error:  # a task is someone else's program
        kind = type(error).__name__
        reason = next(iter(str(error).strip().splitlines()), "")
        if kind.startswith(_OF_THE_NETWORK):
            hint = "Questions are downloaded once, and this needs a network."
            raise NetworkError(f"{what}: {kind}: {reason}", hint) from error
        raise GptFastError(f"{what}: {kind}: {reason}", "--debug shows where in the task it arose.") from error
