"""The models on this machine: what `gptfast --list` writes, as a table and as JSON."""

from typing import Final, TextIO

from gptfast_cli.core.checkpoints.inventory import Entry, Inventory
from gptfast_cli.render.json import Keys, write_document
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.terminal import Table, aligned, printable

ENTRY_KEYS: Final = (
    "name current=is_current where family scheme head_scheme bytes=n_bytes parameters=n_params path problem"
)
_KEYS: Final[Keys] = {Entry: ENTRY_KEYS, Inventory: "models=entries total_bytes=n_bytes"}
_HEADINGS: Final = ("", "NAME", "WHERE", "FAMILY", "SCHEME", "HEAD", "SIZE", "PARAMETERS", "PATH")


def write_json(inventory: Inventory, stream: TextIO) -> None:
    """Write the inventory as one document."""
    write_document("gptfast.list/1", inventory, stream, _KEYS)


def write_inventory(inventory: Inventory, stream: TextIO, notes: TextIO) -> None:
    """Write the models to `stream`, and to `notes` how many there are, and why some cannot run here."""
    rows = tuple(tuple(map(printable, _row(entry))) for entry in inventory.entries)
    stream.write("".join(f"{line}\n" for line in aligned(Table(_HEADINGS, rows, "<<<<<<>><"))))
    stream.flush()
    notes.write(f"{len(rows)} models, {size(inventory.n_bytes)} in all\n")
    for entry in inventory.entries:
        if entry.problem is not None:
            notes.write(printable(f"{entry.name} cannot run here: {entry.problem}") + "\n")


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        ("*" if entry.is_current else "") + ("x" if entry.problem is not None else ""),
        entry.name,
        entry.where,
        entry.family or "",
        entry.scheme or "",
        entry.head_scheme or "",
        size(entry.n_bytes),
        "" if entry.n_params is None else count(entry.n_params),
        str(entry.path),
    )
