"""How a checkpoint is stored is reported without reading it, and comes to its very bytes."""

from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.foreign import WeightPart
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.jobs import quantize
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.quantize.allocation import AllocationOptions, Storage
from gptfast_cli.core.quantize.sizes import storages_of
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
    storages = storages_of(checkpoint)
    assert storages == options.allocation(checkpoint.config).of(checkpoint.config)
    shapes = weight_shapes(checkpoint.config)
    assert sum(storages[name].n_bytes(shape, 2) for name, shape in shapes.items()) == checkpoint.n_bytes


def test_weights_of_another_program_are_plain_and_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "model"))

    def read(part: WeightPart) -> torch.Tensor:
        raise AssertionError(part.location)

    monkeypatch.setattr("gptfast_cli.core.checkpoints.foreign.ForeignCheckpoint.weight", read)
    monkeypatch.setattr("gptfast_cli.core.checkpoints.foreign.ForeignCheckpoint.tensors", read)
    assert set(storages_of(checkpoint).values()) == {Storage("plain")}
