"""A short hash that tells models apart, quick enough to be taken at every start.

Of each stored tensor it covers the name, the dtype, the shape and some of the bytes, taken evenly from all over it:
training touches every matrix everywhere, so two models that differ differ there. It is no proof against forgery.
"""

import hashlib
import json

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.config_form import config_to_json
from gptfast_cli.core.model.weights import weight_shapes

_BLOCKS = 16
_BLOCK_BYTES = 1024


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 in hexadecimal over a model's shape and a sample of its weights as stored."""
    digest = hashlib.sha256(json.dumps(config_to_json(checkpoint.config), sort_keys=True).encode())
    for name in weight_shapes(checkpoint.config):
        for piece in checkpoint.pieces(name):
            tensor = piece.tensor
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            content = tensor.contiguous().view(-1).view(torch.uint8)
            stride = max(len(content) // _BLOCKS, _BLOCK_BYTES)
            for start in range(0, len(content), stride):
                digest.update(content[start : start + _BLOCK_BYTES].numpy().tobytes())
    return digest.hexdigest()
