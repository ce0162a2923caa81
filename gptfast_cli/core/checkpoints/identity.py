"""Hashes that identify a model and the recipe of a checkpoint, so that finished work is not repeated.

The fingerprint covers the name, dtype, shape and evenly spaced samples of the bytes of each stored tensor: training
changes all of a matrix, so different models differ in the samples. It is no protection against forgery.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, config_to_json, sha256_of
from gptfast_cli.core.checkpoints.reader import ManifestCheckpoint, open_manifest_checkpoint
from gptfast_cli.core.checkpoints.writer import Contents
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.models.weights import weight_shapes

_BLOCKS = 16
_BLOCK_BYTES = 1024


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hexadecimal SHA-256 of a model's shape and a sample of its stored weights."""
    digest = hashlib.sha256(json.dumps(config_to_json(checkpoint.config), sort_keys=True).encode())
    for name in weight_shapes(checkpoint.config):
        for located in checkpoint.tensors(name):
            tensor = located.tensor
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            content = tensor.contiguous().view(-1).view(torch.uint8)
            stride = max(len(content) // _BLOCKS, _BLOCK_BYTES)
            for start in range(0, len(content), stride):
                digest.update(content[start : start + _BLOCK_BYTES].numpy().tobytes())
    return digest.hexdigest()


def with_recipe(contents: Contents, source: Checkpoint, options: str = "") -> Contents:
    """The contents with their recipe hash; `options`: what else the bytes depend on."""
    tokenizer = contents.tokenizer
    files = () if tokenizer is None else tuple((file.name, sha256_of(file)) for file in tokenizer.files)
    ids = None if tokenizer is None else (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.add_bos)
    shown = (contents.name, contents.config, contents.dtype, contents.weights, contents.provenance)
    text = f"{fingerprint(source)} {shown} {files} {ids} {options}"
    recipe = hashlib.sha256(text.encode()).hexdigest()
    return replace(contents, provenance=replace(contents.provenance, recipe=recipe))


def existing_checkpoint(folder: Path, contents: Contents, source: Checkpoint) -> ManifestCheckpoint | None:
    """The checkpoint in a folder, if it has the same recipe and no file of its source is newer.

    Times are compared since a damaged source that was downloaded again may have the same fingerprint.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        existing = open_manifest_checkpoint(folder)
    except GptFastError:  # damaged, or written by a later version
        return None
    written_at = (folder / MANIFEST_FILE).stat().st_mtime_ns
    is_newer = all(file.stat().st_mtime_ns <= written_at for file in source.files)
    return existing if is_newer and existing.manifest.provenance == contents.provenance else None
