"""Answers are continued only for the same model: a change at any place in its files makes it another one."""

import shutil
from pathlib import Path

from gptfast_cli.core.batch.rows import model_identity
from model_files import edit_tensors, saved


def test_a_change_at_the_end_of_any_file_is_another_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"x" * 20_000_000 + b"a")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    seen = {model_identity(folder, tmp_path)}
    assert model_identity(copy, tmp_path) in seen
    with (copy / "tokenizer.json").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"b")
    seen.add(model_identity(copy, tmp_path))
    (copy / "chat_template.jinja").write_text("{{ messages }} ")
    seen.add(model_identity(copy, tmp_path))
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors["lm_head.weight"][-1, -1].add_(1))
    seen.add(model_identity(copy, tmp_path))
    assert len(seen) == 4
