"""The current model: the one that was last made ready, taken where a command names none.

`$GPTFAST_HOME/current` holds one line: a name in the store, or the absolute path of a folder.
"""

from pathlib import Path

from gptfast_cli.core.files import write_whole

_FILE = "current"


def read_current(home: Path) -> str | None:
    """The name or absolute path of the current model; None where there is none yet."""
    try:
        text = (home / _FILE).read_text(encoding="utf-8").rstrip("\r\n")  # a prefix in S3 may end with a space
    except FileNotFoundError:
        return None
    return text if text.strip() else None


def write_current(home: Path, model: str | Path) -> None:
    """Make a model the current one: a name in the store, or a folder's path."""
    write_whole(home / _FILE, f"{model.resolve() if isinstance(model, Path) else model}\n")


def clear_current(home: Path) -> None:
    """Have no current model."""
    (home / _FILE).unlink(missing_ok=True)
