"""`gptfast --list`, `--show`, `--use`, `--remove`, `--prune` and `--show-settings`: models here, and where they are."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from gptfast_cli.core.checkpoints.inventory import find_entries, remove, take_inventory
from gptfast_cli.core.checkpoints.resolve import as_path, resolve
from gptfast_cli.core.checkpoints.store import OTHER_HOME, write_current
from gptfast_cli.core.engine.local_models import find_local_models
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.files import why_not_writable
from gptfast_cli.core.settings import load_settings, settings_file
from gptfast_cli.options import MODEL_VARIABLE
from gptfast_cli.render.inventory import write_inventory, write_json
from gptfast_cli.render.json import to_document, write_document
from gptfast_cli.render.numbers import size
from gptfast_cli.render.terminal import Table, aligned, printable


def list_models(*, json: bool) -> None:
    """Write all models to stdout; a star marks the one that is taken where a command names none.

    A cross marks those that cannot run here, and stderr has the reasons.
    """
    inventory = find_local_models(load_settings())
    if json:
        write_json(inventory, sys.stdout)
        return
    write_inventory(inventory, sys.stdout, sys.stderr)
    if not any(entry.is_current for entry in inventory.entries):
        sys.stderr.write(
            f"The current model, {printable(inventory.current)}, does not exist any more: use --model MODEL.\n"
        )
    if named := os.environ.get(MODEL_VARIABLE):
        sys.stderr.write(f"{MODEL_VARIABLE} is set to {printable(named)}, which overrides the current model.\n")


def show_model(model: str, *, json: bool) -> None:
    """Write one model's card to stdout; raises NotFoundError."""
    settings = load_settings()
    resolve(model, settings)  # before PyTorch is loaded
    from gptfast_cli.core.engine.model_card import read_card
    from gptfast_cli.render import model_card

    card = read_card(model, settings)
    if json:
        model_card.write_json(card, sys.stdout)
    else:
        model_card.write_card(card, sys.stdout)


def use_model(model: str) -> None:
    """Make a model the current one; raises NotFoundError, and GptFastError where the home cannot be written."""
    settings = load_settings()
    found = resolve(model, settings)
    if (reason := why_not_writable(settings.home)) is not None:
        raise GptFastError(f"{settings.home} cannot be written ({reason}).", OTHER_HOME)
    write_current(settings.home, found.path if as_path(model) else found.name)
    sys.stderr.write(f"Current model: {printable(found.name)}\n")


@dataclass(frozen=True, slots=True)
class _ShownSettings:
    """Folders, `GPTFAST_*` variables, and the settings file's defaults by command and option."""

    home: Path
    hf_cache: Path
    kernel_cache: Path
    settings_file: Path
    environment: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, object]]


def show_settings(defaults: Mapping[str, Mapping[str, object]], *, json: bool) -> None:
    """Write the folders, the environment variables and the settings file's values to stdout.

    defaults: of the settings file, by command and option
    """
    settings = load_settings()
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("GPTFAST_")}
    shown = _ShownSettings(
        settings.home, settings.hf_cache, settings.kernel_cache, settings_file(), variables, defaults
    )
    if json:
        write_document("gptfast.settings/1", shown, sys.stdout)
        return
    own = {f"[{name}] {key}": value for name, options in defaults.items() for key, value in options.items()}
    folders = to_document(shown, {_ShownSettings: "* -environment -defaults"})
    _write_pairs({**folders, **variables, **own})


def _write_pairs(fields: Mapping[str, object]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        sys.stdout.write(f"{name:<{width}}  {printable('' if value is None else str(value))}\n")


def remove_model(name: str, *, yes: bool) -> None:
    """Delete a model, after a `y` to the question whether to, or with `yes`.

    Raises NotFoundError if there is none of this name, UsageError if nobody could be asked, or where it is not
    this program's to remove.
    """
    settings = load_settings()
    entries = find_entries(take_inventory(settings), name)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"{name} was not removed: no terminal to confirm on.", f"gptfast --remove {name} --yes")
    entry = entries[0]
    is_link = entry.path.is_symlink()
    what = f"the link {entry.path}" if is_link else f"{size(sum(each.n_bytes for each in entries))} in {entry.path}"
    others = f" and {len(entries) - 1} more revisions" if len(entries) > 1 else ""
    if yes or typer.confirm(f"Remove {entry.name} ({what}{others})?", err=True):
        remove(entries, settings)
        sys.stderr.write(f"Removed {entry.name}{others}.\n")
    else:
        sys.stderr.write(f"Kept {entry.name}.\n")


def prune(*, yes: bool) -> None:
    """Delete what interrupted runs and older versions left, after a `y` to the question whether to, or with `yes`.

    Raises UsageError if nobody could be asked.
    """
    from gptfast_cli.core.jobs.prune import find_leftovers
    from gptfast_cli.core.jobs.prune import remove as delete

    found = find_leftovers(load_settings())
    if not found:
        sys.stderr.write("There is nothing to delete.\n")
        return
    rows = tuple((printable(each.what), size(each.n_bytes), printable(str(each.path))) for each in found)
    for line in aligned(Table(("LEFT BEHIND", "SIZE", "PATH"), rows, "<><")):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    total = size(sum(each.n_bytes for each in found))
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"{total} were not deleted: no terminal to confirm on.", "gptfast --prune --yes")
    if not yes and not typer.confirm(f"Delete {total}? What was unfinished then starts over", err=True):
        sys.stderr.write("Kept all.\n")
        return
    n_bytes = 0
    for each in found:
        if delete(each):
            n_bytes += each.n_bytes
        else:
            sys.stderr.write(f"Kept {printable(str(each.path))}: it is being written again.\n")
    sys.stderr.write(f"Deleted {size(n_bytes)}.\n")
