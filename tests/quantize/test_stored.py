"""How a checkpoint is stored is reported without reading it, and comes to its very bytes."""

from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.checkpoint import outline_of
from gptfast_cli.core.checkpoints.foreign import WeightPart
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.jobs import quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.schemes import forms
from model_files import drained, saved, settings_in


@pytest.mark.parametrize(
    "options",
    [
        AllocationOptions("int8", head="plain"),
        AllocationOptions("int4", 64, layers="1=int8"),
        AllocationOptions("plain", 32, head="int4"),
    ],
)
def test_a_quantized_checkpoint_is_stored_as_it_was_asked_for(tmp_path: Path, options: AllocationOptions) -> None:
    request = quantize.QuantizeRequest(
        settings_in(tmp_path), "tiny", options, fidelity=False, runtime=RuntimeConfig(device="cpu")
    )
    checkpoint = open_checkpoint(drained(quantize.run(request))[1].path)
    outline = outline_of(checkpoint)
    wanted = options.allocation(checkpoint.config).outline(checkpoint.config, torch.bfloat16)
    assert {name: forms(weight) for name, weight in outline.items()} == {
        name: forms(weight) for name, weight in wanted.items()
    }
    assert sum(weight.n_bytes for weight in outline.values()) == checkpoint.n_bytes


def test_weights_of_another_program_are_plain_and_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "model"))

    def read(part: WeightPart) -> torch.Tensor:
        raise AssertionError(part.location)

    monkeypatch.setattr("gptfast_cli.core.checkpoints.foreign.ForeignCheckpoint.weight", read)
    monkeypatch.setattr("gptfast_cli.core.checkpoints.foreign.ForeignCheckpoint.tensors", read)
    assert {weight.scheme for weight in outline_of(checkpoint).values()} == {"plain"}
