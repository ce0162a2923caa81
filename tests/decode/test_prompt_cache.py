"""A prompt kept in a file gives the text that feeding it gives, to its own model only."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptfast_cli.core.decode.building import Placing
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.errors import CorruptError, DiskFullError, UsageError
from gptfast_cli.core.events import Measured, Note, Text
from gptfast_cli.core.jobs.generate import GenerateRequest, Generation, run
from model_files import drained, edit_tensors, saved, settings_in

PREFIX = tuple(range(3, 60))
QUESTION, OTHER_QUESTION = (7, 8, 9), (70, 71)


@pytest.fixture
def request_for(tmp_path: Path) -> GenerateRequest:
    return GenerateRequest(
        prompt=(*PREFIX, *QUESTION),
        settings=settings_in(tmp_path),
        model=str(saved(tmp_path / "model")),
        placing=Placing(device="cpu"),
        sampling=Sampling(temperature=1.0, top_k=0),
        max_new_tokens=12,
        seed=3,
        prompt_cache=tmp_path / "prompt.safetensors",
    )


def outcome(request: GenerateRequest, **changes: object) -> tuple[int, Generation, list[str]]:
    """Prompt tokens fed, the result, and what was told."""
    events, result = drained(run(dataclasses.replace(request, **changes)))
    fed = sum(event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "prefill")
    return fed, result, [event.text for event in events if isinstance(event, Note)]


def test_a_second_run_starts_behind_the_prompt_and_gives_the_same_tokens(request_for: GenerateRequest) -> None:
    n_prompt = len(PREFIX) + len(QUESTION)
    fed, first, told = outcome(request_for)
    assert fed == n_prompt
    assert f"kept {n_prompt} tokens" in told[-1]
    fed, second, told = outcome(request_for)
    assert fed == 1
    assert f"holds {n_prompt} of the prompt's {n_prompt} tokens" in told[-1]
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
    job = run(dataclasses.replace(request_for, max_new_tokens=50))
    while not (isinstance(event := next(job), Measured) and event.phase == "decode"):
        pass
    told = [job.throw(KeyboardInterrupt())]
    told += drained(job)[0]
    assert any(isinstance(event, Note) and "kept" in event.text for event in told)
    assert not any(isinstance(event, Text) for event in told)
    assert outcome(request_for)[0] == 1


@pytest.mark.parametrize("change", ["weights", "dtype"])
def test_another_model_or_dtype_is_refused_and_the_file_stays(request_for: GenerateRequest, change: str) -> None:
    outcome(request_for)
    kept = request_for.prompt_cache.read_bytes()
    placing = Placing(device="cpu", dtype="bfloat16" if change == "dtype" else None)
    if change == "weights":
        weights = Path(str(request_for.model)) / "model.safetensors"
        edit_tensors(weights, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    with pytest.raises(UsageError, match="another model, or of another dtype"):
        outcome(request_for, placing=placing)
    assert request_for.prompt_cache.read_bytes() == kept


@pytest.mark.parametrize("damage", ["text", "cut", "other tensors", "other shape"])
def test_a_file_that_is_no_prompt_cache_is_refused_and_stays(request_for: GenerateRequest, damage: str) -> None:
    file = request_for.prompt_cache
    outcome(request_for)
    match damage:
        case "text":
            file.write_text("Dear diary, nobody should overwrite this.")
        case "cut":
            file.write_bytes(file.read_bytes()[:-7])
        case "other tensors":
            save_file({"a": torch.zeros(3)}, file)
        case "other shape":
            edit_tensors(file, lambda tensors: tensors.update({"keys.0": torch.zeros(3, 2, 12)}))
    before = file.read_bytes()
    with pytest.raises(CorruptError, match=r"prompt\.safetensors"):
        outcome(request_for)
    assert file.read_bytes() == before


def test_a_full_disk_leaves_no_file(request_for: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptfast_cli.core.checkpoints.shard_writer._write_bytes", full)
    with pytest.raises(DiskFullError):
        outcome(request_for)
    assert not list(request_for.prompt_cache.parent.glob("*prompt*"))
