"""A prompt kept in a file gives the text that feeding it gives, to its own model only."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from generation_requests import changed, requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.prompt_cache import _sha256_of
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import CorruptError, DiskFullError, UsageError
from gptfast_cli.core.events import Measured, Note, TextChunk
from gptfast_cli.core.jobs.generate import GenerateRequest, GenerateResult, run
from model_files import drained, edit_tensors, saved, settings_in
from spoiling import UNHURRIED, spoilt_bytes, spoilt_header

PREFIX = tuple(range(3, 60))
QUESTION, OTHER_QUESTION = (7, 8, 9), (70, 71)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> GenerateRequest:
    request = request_in(tmp_path_factory.mktemp("sound"))
    outcome(request)
    return request


@pytest.fixture
def request_for(tmp_path: Path) -> GenerateRequest:
    return request_in(tmp_path)


def request_in(tmp_path: Path) -> GenerateRequest:
    return requested(
        GenerateRequest,
        prompt=(*PREFIX, *QUESTION),
        settings=settings_in(tmp_path),
        model=str(saved(tmp_path / "model")),
        runtime=RuntimeConfig(device="cpu"),
        sampling=Sampling(temperature=1.0, top_k=0),
        max_new_tokens=12,
        seed=3,
        prompt_cache=tmp_path / "prompt.safetensors",
    )


def outcome(request: GenerateRequest, **changes: object) -> tuple[int, GenerateResult, list[str]]:
    """Prompt tokens fed, the result, and what was reported."""
    events, result = drained(run(changed(request, **changes)))
    fed = sum(event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "prefill")
    return fed, result, [event.text for event in events if isinstance(event, Note)]


def test_a_second_run_starts_behind_the_prompt_and_gives_the_same_tokens(request_for: GenerateRequest) -> None:
    n_prompt = len(PREFIX) + len(QUESTION)
    fed, first, output = outcome(request_for)
    assert fed == n_prompt
    assert f"kept {n_prompt} tokens" in output[-1]
    fed, second, output = outcome(request_for)
    assert fed == 1
    assert f"holds {n_prompt} of the prompt's {n_prompt} tokens" in output[-1]
    assert second.samples == first.samples


def test_a_prompt_with_the_same_beginning_feeds_only_its_end(request_for: GenerateRequest) -> None:
    outcome(request_for)
    kept = request_for.prompt_cache.read_bytes()
    prompt = (*PREFIX, *OTHER_QUESTION)
    fed, result, _ = outcome(request_for, prompt=prompt)
    assert fed == len(OTHER_QUESTION)
    assert result.samples == outcome(request_for, prompt=prompt, prompt_cache=None)[1].samples
    assert request_for.prompt_cache.read_bytes() == kept


def test_a_prompt_of_its_own_takes_the_place_of_the_one_kept(request_for: GenerateRequest) -> None:
    outcome(request_for)
    other = tuple(range(100, 40, -1))
    outcome(request_for, prompt=other)
    assert load_file(request_for.prompt_cache)["tokens"].tolist() == list(other)


def test_several_samples_start_from_the_same_file(request_for: GenerateRequest) -> None:
    _, first, _ = outcome(request_for, num_samples=3, batch_size=2)
    fed, second, _ = outcome(request_for, num_samples=3, batch_size=2)
    assert fed == 1
    assert second.samples == first.samples


def test_an_interrupt_keeps_a_prompt_that_was_fed(request_for: GenerateRequest) -> None:
    job = run(changed(request_for, max_new_tokens=50))
    while not (isinstance(event := next(job), Measured) and event.phase == "decode"):
        pass
    output = [job.throw(KeyboardInterrupt())]
    output += drained(job)[0]
    assert any(isinstance(event, Note) and "kept" in event.text for event in output)
    assert not any(isinstance(event, TextChunk) for event in output)
    assert outcome(request_for)[0] == 1


@pytest.mark.parametrize("change", ["weights", "dtype"])
def test_another_model_or_dtype_is_refused_and_the_file_stays(request_for: GenerateRequest, change: str) -> None:
    outcome(request_for)
    kept = request_for.prompt_cache.read_bytes()
    runtime = RuntimeConfig(device="cpu", dtype="bfloat16" if change == "dtype" else None)
    if change == "weights":
        weights = Path(str(request_for.model)) / "model.safetensors"
        edit_tensors(weights, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    with pytest.raises(UsageError, match="another model, or of another dtype"):
        outcome(request_for, runtime=runtime)
    assert request_for.prompt_cache.read_bytes() == kept


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "text": lambda file: file.write_text("Dear diary, nobody should overwrite this."),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "pipe": _pipe,
    "other tensors": lambda file: save_file({"a": torch.zeros(3)}, file),
    "no checksum": lambda file: edit_tensors(file, lambda tensors: tensors.pop("sha256")),
    "altered": lambda file: edit_tensors(file, lambda tensors: tensors["values.1"][-1, -1].mul_(1.01)),
    "scalar": lambda file: edit_tensors(file, lambda tensors: tensors.update({"tokens": torch.tensor(3)})),
    "int32": lambda file: edit_tensors(file, lambda tensors: tensors.update({"tokens": tensors["tokens"].int()})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_prompt_cache_is_refused_and_stays(request_for: GenerateRequest, damage: str) -> None:
    file = request_for.prompt_cache
    outcome(request_for)
    DAMAGES[damage](file)
    before = file.read_bytes() if file.is_file() else b""
    with pytest.raises(CorruptError, match=r"prompt\.safetensors"):
        outcome(request_for)
    assert damage == "pipe" or file.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"keys.0": torch.zeros(3, 2, 12)},
        {"keys.0": torch.zeros(2, 60, 12, dtype=torch.bfloat16)},
        {"keys.9": torch.zeros(1)},
        {"tokens": torch.arange(1_000_000)},
    ],
)
def test_a_file_that_fits_its_checksum_but_not_the_model_is_refused(
    request_for: GenerateRequest, change: dict[str, torch.Tensor]
) -> None:
    """Before the cache makes room for as many tokens as the file claims to have."""
    outcome(request_for)

    def forge(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["sha256"]
        tensors.update(change)
        tensors["sha256"] = _sha256_of(tensors)

    edit_tensors(request_for.prompt_cache, forge)
    with pytest.raises(CorruptError, match="keys and values of another shape or dtype"):
        outcome(request_for)


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=UNHURRIED)
def test_a_spoilt_file_never_gives_another_text(data: Any, sound: GenerateRequest) -> None:
    file = sound.prompt_cache.with_name("spoilt.safetensors")
    content = sound.prompt_cache.read_bytes()
    file.write_bytes(data.draw(spoilt_header(content) | spoilt_bytes(content)))
    with contextlib.suppress(CorruptError, UsageError):
        assert outcome(sound, prompt_cache=file)[1].samples == outcome(sound)[1].samples


def test_a_full_disk_leaves_no_file(request_for: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptfast_cli.core.checkpoints.writer._write_bytes", full)
    with pytest.raises(DiskFullError):
        outcome(request_for)
    assert not list(request_for.prompt_cache.parent.glob("*prompt*"))
