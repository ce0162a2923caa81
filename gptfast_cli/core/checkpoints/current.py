"""The current model: the one that was last made ready, taken where a command names none.

`$GPTFAST_HOME/current` holds one line: a name in the store, or the absolute path of a folder.
"""

from pathlib import Path
from typing import Final

from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.files import why_not_writable, write_whole

OTHER_HOME: Final = "GPTFAST_HOME can name another folder."

_FILE = "current"


def read_current(home: Path) -> str | None:
    """The name or absolute path of the current model; None where there is none yet."""
    try:
        text = (home / _FILE).read_text(encoding="utf-8").rstrip("\r\n")  # a prefix in S3 may end with a space
    except OSError:  # there is none, or the home is not for this person
        return None
    return text if text.strip() else None


def make_current(home: Path, model: str | Path) -> Job[bool]:
    """Make a model the current one; where the home cannot be written, say so and return False: the model is made."""
    reason = why_not_writable(home)
    if reason is not None:
        yield Note(f"{home} cannot be written ({reason}), so the current model stays as it was. {OTHER_HOME}")
        return False
    write_current(home, model)
    return True


def write_current(home: Path, model: str | Path) -> None:
    """Make a model the current one: a name in the store, or a folder's path."""
    write_whole(home / _FILE, f"{model.resolve() if isinstance(model, Path) else model}\n")


def clear_current(home: Path) -> None:
    """Have no current model."""
    (home / _FILE).unlink(missing_ok=True)
