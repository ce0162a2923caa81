"""`gptfast --list` and `gptfast --remove NAME`: what the store holds, and taking a checkpoint out of it."""

import sys

import typer

from gptfast_cli.core.checkpoints.current import read_current
from gptfast_cli.core.checkpoints.store import Store, StoreEntry, open_store
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.table import write_table


def list_store() -> None:
    """Write the table of checkpoints to stdout; a star marks the one taken where a command names none."""
    settings = load_settings()
    current = read_current(settings.home)
    entries = open_store(settings).entries()
    if not entries:
        sys.stderr.write("The store is empty: `gptfast convert` fills it, and the model `tiny` is always there.\n")
        return
    rows = [_row(entry, is_current=entry.name == current) for entry in entries]
    write_table([("", "NAME", "SCHEME", "SIZE", "PARAMETERS"), *rows], sys.stdout)


def remove_from_store(name: str, *, yes: bool) -> None:
    """Delete a checkpoint, after a `y` to the question whether to, or with `yes`.

    Raises NotFoundError where there is none of this name, UsageError where nobody could be asked.
    """
    store = open_store(load_settings())
    entry = _find(store, name)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"{name} was not removed: there is no terminal to ask on.", f"gptfast --remove {name} --yes")
    if yes or typer.confirm(f"Remove {entry.name} ({size(entry.n_bytes)}) from {entry.path}?", err=True):
        store.remove(name)
        sys.stderr.write(f"Removed {entry.name}.\n")
    else:
        sys.stderr.write(f"Kept {entry.name}.\n")


def _row(entry: StoreEntry, *, is_current: bool) -> tuple[str, ...]:
    return "*" if is_current else "", entry.name, entry.scheme, size(entry.n_bytes), count(entry.n_params)


def _find(store: Store, name: str) -> StoreEntry:
    path = store.find(name)
    for entry in store.entries():
        if entry.path == path:
            return entry
    raise NotFoundError(f"The store holds no {name}.", "See what it holds: gptfast --list")
