"""Where a file of a model was downloaded from, what it should hash to, and the command that fetches it again."""

import glob
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.hub_cache import Snapshot, snapshot_at
from gptfast_cli.core.checkpoints.s3_folder import S3, parse_bucket_path
from gptfast_cli.core.digest import GIT_SHA1, SHA256, Checksum
from gptfast_cli.core.download_notes import DownloadNote, read_note, sources_noted
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import DAMAGED
from gptfast_cli.core.settings import load_settings

FETCH_AGAIN: Final = "The file is damaged or its download was cut short: fetch it again."
"""The hint for a file that may not have been downloaded by gptfast; `with_command` puts the command in its place."""

MAKE_AGAIN: Final = "The checkpoint is damaged: convert or download it again."
"""The same for a checkpoint of gptfast's own."""

_VAGUE: Final = ("", FETCH_AGAIN, MAKE_AGAIN, DAMAGED)
_BLOBS: Final = {40: GIT_SHA1, 64: SHA256}  # by digits of their names


@dataclass(frozen=True, slots=True)
class _Noted:
    """A file in a plain folder that has a note about it."""

    root: Path
    note: DownloadNote


def downloaded_checksum(file: Path) -> Checksum | None:
    """What a file hashed to where it came from; None where that is not known, or it was not downloaded.

    A file of a snapshot is a link to `blobs/<hash>`; one in a plain folder has a note beside it.
    """
    noted = _noted(file)
    if noted is not None:
        return noted.note.checksum
    blob = file.resolve()
    if blob.parent.name != "blobs" or len(blob.name) not in _BLOBS or not set(blob.name) <= set("0123456789abcdef"):
        return None
    return Checksum(_BLOBS[len(blob.name)], blob.name)


def fetch_command(path: Path, damaged: Sequence[Path] = ()) -> str | None:
    """The command that fetches again what is damaged of a file or a folder; None where that was not downloaded.

    It compares every hash, and fetches what differs; in a plain folder of the Hub only `damaged`, where they are named,
    as a person may have changed other files. The objects of S3 may be of a later version, and then all are fetched.
    """
    path = path.absolute()
    snapshot = next(filter(None, map(snapshot_at, [path, *path.parents])), None)
    if snapshot is not None:
        return _of_snapshot(snapshot)
    noted = next(filter(None, map(_noted, damaged or _files_of(path))), None)
    return None if noted is None else _of_noted(noted, damaged)


def with_command(error: CorruptError, path: Path) -> CorruptError:
    """The same error with the command that fetches the file or folder again, where it only said that one should."""
    command = fetch_command(path) if error.hint in _VAGUE else None
    return error if command is None else CorruptError(error.message, f"Fetch it again: {command}")


def _of_snapshot(snapshot: Snapshot) -> str:
    cache = snapshot.path.parents[2]
    command = shlex.join(["gptfast", "download", snapshot.repo, "--revision", snapshot.commit, "--force"])
    return command if cache == load_settings().hf_cache.absolute() else f"{_set('HF_HUB_CACHE', cache)} {command}"


def _of_noted(noted: _Noted, damaged: Sequence[Path]) -> str:
    source, root = noted.note.source or "ORG/NAME", noted.root
    words = ["gptfast", "download", source]
    path = parse_bucket_path(source)
    if not source.startswith(S3):
        words += ["--revision", noted.note.version]
        words += [word for file in damaged for word in ("--include", glob.escape(file.relative_to(root).as_posix()))]
    if path is None or root != path.folder(load_settings().home).absolute():
        words += ["--local-dir", str(root)]
    return shlex.join([*words, "--force"])


def _set(variable: str, value: Path) -> str:
    return f"{variable}={shlex.quote(str(value))}"


def _noted(file: Path) -> _Noted | None:
    file = file.absolute()
    for root in file.parents:
        note = read_note(root, file.relative_to(root).as_posix())
        if note is not None:
            return _Noted(root, note)
    return None


def _files_of(path: Path) -> list[Path]:
    """The file itself, or files of the folder; of a downloaded one each has a note."""
    if path.is_dir() and sources_noted(path) is not None:
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path]
