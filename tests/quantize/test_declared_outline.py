"""What a declaration says of a model's size is what its weights take where they are read."""

from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.checkpoint import outline_of
from gptfast_cli.core.checkpoints.quantization_config import read_quantization_config
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.quantize.sizes import declared_outline, memory_need
from quantized_repositories import saved


@pytest.mark.parametrize(
    "name",
    [
        *("gptq", "gptq, 3 bits", "gptq by quantize_config.json", "awq gemm", "fp8 matrix", "ct W4A16, asymmetric"),
        *("ct W8A16, rows", "ct mixed", "bitsandbytes nf4, nested", "bitsandbytes int8", "mxfp4", "mlx", "mlx mxfp4"),
    ],
)
def test_declared_bytes_are_those_of_the_weights(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "model", name)
    checkpoint, declared = open_checkpoint(tmp_path / "model"), read_quantization_config(tmp_path / "model")
    assert declared is not None
    planned = declared_outline(checkpoint.config, declared, torch.float32)  # of the plain weights in these files
    assert {weight: outline.n_bytes for weight, outline in outline_of(checkpoint).items()} == {
        weight: outline.n_bytes for weight, outline in planned.items()
    }
    in_bfloat16 = declared_outline(checkpoint.config, declared, torch.bfloat16)
    assert memory_need(checkpoint.config, declared).weight_bytes == {
        str(declared): sum(outline.n_bytes for outline in in_bfloat16.values())
    }
