"""The CPU engine is taken where it can run a model, PyTorch's own operations elsewhere, and a person can choose."""

import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from generation_requests import requested
from gptfast_cli.core.backends.cpu.compiler import library_file
from gptfast_cli.core.engine.build import RuntimeConfig, open_engine
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.jobs.generate import GenerateRequest, run
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.native import NativeModel
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.settings import Settings
from model_files import drained, saved, settings_in


def loaded(settings: Settings, model: str = "tiny", **runtime: str | None) -> tuple[list[str], Decoder]:
    events, result = drained(load(model, settings, RuntimeConfig(device="cpu", **runtime)))  # type: ignore[arg-type]
    return [event.text for event in events if isinstance(event, Note)], result.model


def test_the_engine_is_taken_unless_the_reference_is_named(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert isinstance(loaded(settings)[1], NativeModel)
    assert isinstance(loaded(settings, backend="cpu", dtype="float32")[1], NativeModel)
    assert isinstance(loaded(settings, backend="reference")[1], Transformer)


def test_a_model_that_the_engine_lacks_something_for_runs_on_the_reference(tmp_path: Path) -> None:
    settings, model = settings_in(tmp_path), str(saved(tmp_path / "model"))  # heads of 12
    assert isinstance(loaded(settings, model)[1], Transformer)
    with pytest.raises(UsageError, match="does not run heads of 12 in float32 on cpu"):
        loaded(settings, model, backend="cpu")
    assert isinstance(loaded(settings, dtype="float16")[1], Transformer)


def test_without_a_compiler_the_reference_runs_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    notes, model = loaded(settings_in(tmp_path))
    assert isinstance(model, Transformer)
    assert len([note for note in notes if "There is no C++ compiler" in note and "slow" in note]) == 1
    with pytest.raises(GptFastError, match="no C\\+\\+ compiler") as refused:
        loaded(settings_in(tmp_path), backend="cpu")
    assert "apt-get install g++" in refused.value.hint


def test_the_first_run_says_that_it_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptfast_cli.core.engine import build as backend

    config = loaded(settings_in(tmp_path))[1].config
    monkeypatch.setattr(backend, "compile_library", lambda file: None)
    monkeypatch.setattr(backend, "open_library", lambda file: "the library")
    settings = Settings(home=tmp_path / "home", hf_cache=tmp_path / "hub")
    events, library = drained(open_engine(None, config, {}, torch.float32, torch.device("cpu"), settings))
    assert library == "the library"
    assert any(isinstance(event, Note) and "compiled for this machine, once" in event.text for event in events)


def test_code_in_a_folder_that_others_can_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled in a private folder instead, and found there by the next run."""
    from gptfast_cli.core.engine import build as backend

    compiled: list[Path] = []

    def compile_there(file: Path) -> None:
        file.write_text("library")
        file.with_name(f"{file.name}.sha256").write_text(sha256(b"library").hexdigest())
        compiled.append(file)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(backend, "compile_library", compile_there)
    monkeypatch.setattr(backend, "open_library", lambda file: file)
    settings = Settings(home=tmp_path / "home", hf_cache=tmp_path / "hub")
    settings.kernel_cache.mkdir(parents=True)
    planted = library_file(settings.kernel_cache)
    compile_there(planted)
    settings.kernel_cache.chmod(0o777)
    config = loaded(settings_in(tmp_path), backend="reference")[1].config
    for _ in range(2):
        events, library = drained(open_engine(None, config, {}, torch.float32, torch.device("cpu"), settings))
        notes = [event.text for event in events if isinstance(event, Note)]
        assert f"{settings.kernel_cache}: can be written by other users" in notes[0]
        assert library == compiled[-1] != planted
        assert library.is_relative_to(tmp_path / "temporary")
    assert len(compiled) == 2


@pytest.mark.parametrize(("option", "value"), [("backend", "gpu"), ("activations", "int3")])
def test_a_name_that_is_none_is_a_usage_error(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(UsageError, match=value):
        loaded(settings_in(tmp_path), **{option: value})


def test_float32_text_is_the_same_on_both_backends(tmp_path: Path) -> None:
    texts = []
    for backend in ("cpu", "reference"):
        request = requested(
            GenerateRequest,
            "Once upon a time",
            settings_in(tmp_path),
            model="tiny",
            runtime=RuntimeConfig(device="cpu", dtype="float32", backend=backend),
            sampling=Sampling(temperature=0),
            max_new_tokens=120,
        )
        texts.append(drained(run(request))[1].samples[0].token_ids)
    assert texts[0] == texts[1]


def test_weights_are_counted_alike_on_both_backends(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    native, reference = (
        Runner(loaded(settings, backend=name, dtype="bfloat16")[1], 2) for name in ("cpu", "reference")
    )
    assert native.step_bytes(2) == reference.step_bytes(2)
