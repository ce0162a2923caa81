"""The same work given again finds its result there, as after a kill between publishing and the last word."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.checkpoints.store import bundled_folder, clear_current, read_current, write_current
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Event, Note
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
from gptfast_cli.core.jobs.convert import Converted, ConvertRequest
from gptfast_cli.core.jobs.convert import run as convert
from gptfast_cli.core.jobs.mixed_precision import Goal
from gptfast_cli.core.jobs.quantize import Quantized, QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import WEIGHTS, drained, edit_tensors, saved, settings_in

INT4 = AllocationOptions("int4")
LITTLE = CalibrationOptions(limit=4, seq_length=64)
GPTQ = {"storage": INT4, "rounding": "gptq", "calibration": LITTLE}


def quantized(root: Path, model: str | Path | None = "tiny-draft", **options: Any) -> tuple[list[Event], Quantized]:
    runtime = RuntimeConfig("cpu", "float32", 1)
    name = None if model is None else str(model)
    return drained(quantize(QuantizeRequest(settings_in(root), model=name, runtime=runtime, **options)))


def converted(root: Path, source: Path, **options: Any) -> tuple[list[Event], Converted]:
    return drained(convert(ConvertRequest(str(source), settings_in(root), **options)))


def written_at(folder: Path) -> tuple[int, int]:
    """Which file the manifest is and when it was written; reading it, which moves its access time, changes neither."""
    stat = (folder / "gptfast.json").stat()
    return stat.st_ino, stat.st_mtime_ns


def is_said(events: list[Event]) -> bool:
    return any(isinstance(event, Note) and "already exists, made from the same" in event.text for event in events)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"storage": AllocationOptions("int4", layers="0=int8"), "fidelity": False},
        {"storage": INT4, "rounding": "search"},
        GPTQ,
        {"storage": INT4, "goal": Goal(n_bytes=500_000), "calibration": LITTLE},
    ],
    ids=["nearest", "by layers", "search", "gptq", "a target"],
)
def test_a_quantization_given_again_is_there_and_costs_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    home = settings_in(tmp_path).home
    events, first = quantized(tmp_path, **options)
    assert not first.was_there and not is_said(events)
    written = written_at(first.path)
    current = read_current(home)
    clear_current(home)  # as where a kill came between the two
    events, again = quantized(tmp_path, **options)
    assert again.was_there and is_said(events)
    assert written_at(first.path) == written
    assert (again.path, again.name, again.fidelity) == (first.path, first.name, first.fidelity)
    assert read_current(home) == current


def test_a_conversion_given_again_is_there_and_can_be_verified(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    options = {"dtype": "bfloat16", "tokenizer_from": "tiny"}
    first = converted(tmp_path, source, **options)[1]
    written = written_at(first.path)
    clear_current(settings_in(tmp_path).home)
    events, again = converted(tmp_path, source, **options, verify=True)
    assert again.was_there and is_said(events) and again.path == first.path
    assert written_at(first.path) == written
    assert read_current(settings_in(tmp_path).home) == again.name


@pytest.mark.parametrize(
    "other",
    [
        {"storage": AllocationOptions("int8")},
        {"storage": AllocationOptions("int4", 64)},
        {"rounding": "search", "calibration": CalibrationOptions()},
        {"calibration": CalibrationOptions(limit=4, seq_length=64, damping=0.1)},
        {"calibration": CalibrationOptions(limit=4, seq_length=32)},
        {"model": "tiny"},
    ],
)
def test_other_options_or_another_source_are_not_the_same_work(tmp_path: Path, other: dict[str, Any]) -> None:
    out = tmp_path / "out"
    quantized(tmp_path, **GPTQ, out=out, fidelity=False)
    with pytest.raises(UsageError, match="holds a checkpoint already") as caught:
        quantized(tmp_path, **{**GPTQ, **other}, out=out, fidelity=False)
    assert "--force" in caught.value.hint and "--out" in caught.value.hint


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"tokenizer_from": "tiny"}])
def test_other_options_are_not_the_same_conversion(tmp_path: Path, other: dict[str, Any]) -> None:
    source = saved(tmp_path / "model")
    converted(tmp_path, source)
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        converted(tmp_path, source, **other)


def test_a_source_that_has_changed_since_is_not_the_same_though_its_samples_are(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    made = quantized(tmp_path, source, fidelity=False)[1].path
    assert quantized(tmp_path, source, fidelity=False)[1].was_there
    later = (made / "gptfast.json").stat().st_mtime_ns + 1
    os.utime(source / WEIGHTS, ns=(later, later))  # fetched again
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        quantized(tmp_path, source, fidelity=False)


def test_other_weights_under_the_same_name_and_date_are_not_the_same(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    converted(tmp_path, source)
    times = (source / WEIGHTS).stat()
    edit_tensors(source / WEIGHTS, lambda tensors: tensors["lm_head.weight"].mul_(2))
    os.utime(source / WEIGHTS, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        converted(tmp_path, source)


def test_a_result_that_is_damaged_or_of_an_older_gptfast_is_not_taken(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    made = converted(tmp_path, source)[1].path
    manifest = json.loads((made / "gptfast.json").read_text())
    recipe = manifest["provenance"].pop("recipe")
    (made / "gptfast.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        converted(tmp_path, source)
    manifest["provenance"]["recipe"] = recipe
    (made / "gptfast.json").write_text(json.dumps(manifest))
    assert converted(tmp_path, source)[1].was_there
    (made / "weights-00001.safetensors").write_bytes(b"cut short")
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        converted(tmp_path, source)
    assert not converted(tmp_path, source, force=True)[1].was_there
    assert list(open_manifest_checkpoint(made).verify())


def test_the_bundled_models_are_a_source_too(tmp_path: Path) -> None:
    folder = bundled_folder("tiny-draft")
    assert not converted(tmp_path, folder, out=tmp_path / "out")[1].was_there
    assert converted(tmp_path, folder, out=tmp_path / "out")[1].was_there


@pytest.mark.parametrize(
    "options",
    [
        {"storage": INT4, "fidelity": False},
        {"storage": INT4},
        {**GPTQ, "fidelity": False},
        {"storage": INT4, "dry_run": True},
    ],
    ids=["alone", "with fidelity", "gptq", "dry run"],
)
@pytest.mark.parametrize("in_store", [True, False])
def test_a_command_that_names_no_model_is_done_where_it_made_the_current_one(
    tmp_path: Path, options: dict[str, Any], in_store: bool
) -> None:
    converted(tmp_path, bundled_folder("tiny-draft"))
    where = {} if in_store else {"out": tmp_path / "out"}
    first = quantized(tmp_path, None, **{**options, "dry_run": False}, **where)[1]
    assert first.is_current and not first.was_there
    written = written_at(first.path)
    current = read_current(settings_in(tmp_path).home)
    events, again = quantized(tmp_path, None, **options, **where)
    assert again.was_there and is_said(events)
    assert (again.path, again.name, again.parts) == (first.path, first.name, first.parts)
    assert written_at(first.path) == written
    assert read_current(settings_in(tmp_path).home) == current


@pytest.mark.parametrize(
    "other",
    [
        {"storage": AllocationOptions("int8")},
        {"storage": AllocationOptions("int4", 64)},
        {"rounding": "search"},
        {"force": True},
        {"out": Path("elsewhere")},
        {"model": "tiny-draft:int4"},
    ],
    ids=str,
)
def test_a_current_model_that_other_options_made_is_quantized_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"storage": INT4, "fidelity": False}
    made = quantized(tmp_path, **options)[1]
    assert made.is_current
    if "model" in other:
        other = {"model": made.name}
    with pytest.raises(UsageError, match=f"{made.name}: is already quantized"):
        quantized(tmp_path, **{"model": None, **options, **other})


def test_a_current_model_whose_source_is_gone_is_quantized_already(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    made = quantized(tmp_path, source, storage=INT4, fidelity=False)[1]
    shutil.rmtree(source)
    with pytest.raises(UsageError, match=f"{made.name}: is already quantized"):
        quantized(tmp_path, None, storage=INT4, fidelity=False)


@pytest.mark.parametrize("is_converted", [False, True])
def test_a_current_folder_is_quantized_once(tmp_path: Path, is_converted: bool) -> None:
    source = saved(tmp_path / "model")
    if is_converted:
        source = converted(tmp_path, source, out=tmp_path / "converted")[1].path
    write_current(settings_in(tmp_path).home, source)
    first = quantized(tmp_path, None, storage=INT4, fidelity=False)[1]
    events, again = quantized(tmp_path, None, storage=INT4, fidelity=False)
    assert again.was_there and is_said(events) and again.path == first.path
