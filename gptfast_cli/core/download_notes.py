"""Notes beside the files of a download into a plain folder, as `hf download --local-dir` keeps them.

For each file, `.cache/huggingface/download/<file>.metadata` has lines of text: commit, hash and time, which
huggingface_hub writes and reads; then the algorithm of the hash and the name of the source, which it passes over.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.digest import GIT_SHA1, SHA256, Checksum
from gptfast_cli.core.files import write_whole

NOTES: Final = ".cache/huggingface/download"
SUFFIX: Final = ".metadata"

_HEX: Final = re.compile(r"[0-9a-f]+")
_OF_THE_HUB: Final = {40: GIT_SHA1, 64: SHA256}  # by digits


@dataclass(frozen=True, slots=True)
class DownloadNote:
    """What is known of one file.

    version:  commit, or the ETag of an object in S3
    checksum: that its contents had; None if the source offered none
    source:   `org/name` or `s3://bucket/prefix`; None if another program wrote the note
    noted_at: seconds since 1970; a file that was changed later is not the one of the note
    """

    version: str
    checksum: Checksum | None
    source: str | None
    noted_at: float


def note_path(root: Path, name: str) -> Path:
    """The note about the file `name`, with slashes, of a folder."""
    return root / NOTES / f"{name}{SUFFIX}"


def write_note(root: Path, name: str, *, version: str, checksum: Checksum | None, source: str) -> None:
    """Note what was downloaded, now."""
    value, form = "", ""
    if checksum is not None:
        value, form = checksum.value, f"{checksum.algorithm} {checksum.part_bytes or ''}".strip()
    lines = (version, value, str(time.time()), form, source)
    write_whole(note_path(root, name), "".join(f"{line}\n" for line in lines))


def read_note(root: Path, name: str) -> DownloadNote | None:
    """The note about a file; None if there is none that can be read."""
    try:
        text = note_path(root, name).read_text(encoding="utf-8")
        version, value, noted_at, form, source = [*text.split("\n"), "", "", "", ""][:5]
        return DownloadNote(version, _checksum(value, form), source or None, float(noted_at))
    except (OSError, ValueError):
        return None


def sources_noted(root: Path) -> set[str] | None:
    """The sources of a folder's files, as far as notes tell; None if nothing was downloaded to it."""
    if not (root / NOTES).is_dir():
        return None
    names = (path.name.removesuffix(SUFFIX) for path in (root / NOTES).glob(f"*{SUFFIX}"))
    return {note.source for name in names if (note := read_note(root, name)) and note.source is not None}


def _checksum(value: str, form: str) -> Checksum | None:
    algorithm, _, part_bytes = form.partition(" ")
    algorithm = algorithm or _OF_THE_HUB.get(len(value), "")
    if not algorithm or not _HEX.fullmatch(value):
        return None
    return Checksum(algorithm, value, int(part_bytes) if part_bytes else None)
