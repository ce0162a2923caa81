"""The fingerprint of a model is its own: the same when read again, another when any of its tensors changes."""

from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.identity import fingerprint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from model_files import converted, edit_json, edit_tensors, saved, settings_in


def test_a_model_read_again_has_the_same_fingerprint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    assert fingerprint(open_checkpoint(folder)) == fingerprint(open_checkpoint(folder))
    stored = converted(folder, settings_in(tmp_path)).path
    assert fingerprint(open_checkpoint(stored)) == fingerprint(open_checkpoint(stored))


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_a_change_in_any_tensor_changes_it(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model")
    before = fingerprint(open_checkpoint(folder))
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[name].mul_(1.001))
    assert fingerprint(open_checkpoint(folder)) != before


def test_a_change_in_any_sixteenth_of_a_large_tensor_changes_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", vocab_size=2048)
    name, seen = "model.embed_tokens.weight", {fingerprint(open_checkpoint(folder))}
    for part in range(16):
        edit_tensors(folder / "model.safetensors", lambda tensors, part=part: tensors[name].chunk(16)[part].mul_(1.001))
        seen.add(fingerprint(open_checkpoint(folder)))
    assert len(seen) == 17


def test_a_change_of_the_shape_that_leaves_the_weights_changes_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    before = fingerprint(open_checkpoint(folder))
    edit_json(folder / "config.json", lambda config: config.update(rms_norm_eps=0.25))
    assert fingerprint(open_checkpoint(folder)) != before
