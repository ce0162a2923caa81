"""--verify compares the logits of what was written with transformers', and says why where it does not."""

import importlib.util
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.store import read_current
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.evals import conversion as oracle
from gptfast_cli.core.events import Note
from gptfast_cli.core.families import families
from gptfast_cli.core.families.llama import Llama
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from llama_oracle import SHAPES
from model_files import drained, saved, settings_in


def notes(source: Path, root: Path, **options: str) -> list[str]:
    events, _ = drained(run(ConvertRequest(str(source), settings_in(root), verify=True, **options)))
    return [event.text for event in events if isinstance(event, Note)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_logits_are_those_of_transformers_in_every_dtype(tmp_path: Path, shape: str, dtype: str | None) -> None:
    options = {} if dtype is None else {"dtype": dtype}
    (output,) = [
        note for note in notes(saved(tmp_path / "model", **SHAPES[shape]), tmp_path, **options) if "ogits" in note
    ]
    assert output.startswith("Logits are those of transformers")
    assert float(output.split()[-4]) < 1e-5


def swapped(self: Llama, config: object) -> dict[str, tuple[str, ...]]:
    sources = plain_sources(self, config)
    return {name: tensors[::-1] if name.endswith("gate_up") else tensors for name, tensors in sources.items()}


plain_sources = Llama.sources


def test_a_weight_in_the_wrong_place_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "model")
    monkeypatch.setattr(Llama, "sources", swapped)
    assert families["llama"].sources.__func__ is swapped
    with pytest.raises(GptFastError, match="logits are not those of transformers"):
        notes(source, tmp_path)
    assert read_current(tmp_path / "home") is None


def test_without_transformers_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "model")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    assert "Logits are not compared: transformers is not installed." in notes(source, tmp_path)


def test_a_model_larger_than_the_memory_is_not_given_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "model")
    monkeypatch.setattr(oracle, "available_memory_bytes", lambda: 1000)
    assert any("transformers would need" in note for note in notes(source, tmp_path))


def test_code_that_a_config_brings_along_is_not_run(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    victim = tmp_path / "victim"
    (source / "modeling_evil.py").write_text(f"open({str(victim)!r}, 'w')\nclass Evil: ...\n")
    config = (source / "config.json").read_text()
    evil = '"auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},'
    (source / "config.json").write_text(config.replace("{", "{" + evil, 1))
    assert any(note.startswith("Logits are those") for note in notes(source, tmp_path))
    assert not victim.exists()
