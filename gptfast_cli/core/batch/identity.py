"""What an answer depends on, in a few characters, so that a run is never continued with other prompts or options."""

import hashlib
from pathlib import Path

from gptfast_cli.core.batch.rows import BadRow, Row
from gptfast_cli.core.checkpoints.fingerprint import fingerprint
from gptfast_cli.core.checkpoints.reader import open_checkpoint

_HEX_DIGITS = 16
_LARGEST_OTHER_BYTES = 64_000_000


def model_identity(folder: Path) -> str:
    """A hash of a model: of its weights the fingerprint, of its tokenizer and templates all that is in their files."""
    digest = hashlib.sha256(fingerprint(open_checkpoint(folder)).encode())
    files = (path for path in folder.iterdir() if path.is_file())
    for path in sorted(path for path in files if path.stat().st_size <= _LARGEST_OTHER_BYTES):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def row_identity(row: Row | BadRow, run: str) -> str:
    """A hash of a row, of its place, and of what all rows of a run share: `run`, as one text."""
    index = row.index if isinstance(row, Row) else None
    return hashlib.sha256(f"{row.digest} {index} {run}".encode()).hexdigest()[:_HEX_DIGITS]
