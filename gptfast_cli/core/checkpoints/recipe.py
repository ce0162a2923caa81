"""What a checkpoint is made from, in one hash: the same work, given again, finds that it was done already."""

import hashlib
from dataclasses import replace
from pathlib import Path

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.contents import Contents
from gptfast_cli.core.checkpoints.fingerprint import fingerprint
from gptfast_cli.core.checkpoints.hashes import sha256_of
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE
from gptfast_cli.core.checkpoints.reader import StoredCheckpoint, open_stored
from gptfast_cli.core.errors import GptFastError


def with_recipe(contents: Contents, source: Checkpoint, options: str = "") -> Contents:
    """The same contents with the hash of what they are made from; `options` are those that they do not show."""
    tokenizer = contents.tokenizer
    files = () if tokenizer is None else tuple((file.name, sha256_of(file)) for file in tokenizer.files)
    ids = None if tokenizer is None else (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.add_bos)
    shown = (contents.name, contents.config, contents.dtype, contents.weights, contents.provenance)
    text = f"{fingerprint(source)} {shown} {files} {ids} {options}"
    recipe = hashlib.sha256(text.encode()).hexdigest()
    return replace(contents, provenance=replace(contents.provenance, recipe=recipe))


def made_already(folder: Path, contents: Contents, source: Checkpoint) -> StoredCheckpoint | None:
    """The checkpoint in a folder, if it was made by the same recipe and no file of its source has changed since.

    A fingerprint is of some of the bytes: a source that was damaged and fetched again may have the same.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        made = open_stored(folder)
    except GptFastError:  # damaged, or of a later gptfast
        return None
    made_at = (folder / MANIFEST_FILE).stat().st_mtime_ns
    is_older = all(file.stat().st_mtime_ns <= made_at for file in source.files)
    return made if is_older and made.manifest.provenance == contents.provenance else None
