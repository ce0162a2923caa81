"""A conversion writes all of a checkpoint or nothing: refused, failed, out of space, closed or killed."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.errors import CorruptError, DiskFullError, UsageError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from model_files import WEIGHTS, converted, drained, edit_tensors, saved, settings_in


def test_a_checkpoint_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    old = converted(saved(tmp_path / "model"), settings).path
    before = read_manifest(old)
    shutil.rmtree(tmp_path / "model")
    other = saved(tmp_path / "model", seed=1)
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        converted(other, settings)
    assert read_manifest(old) == before
    converted(other, settings, force=True, verify=True)
    assert read_manifest(old) != before
    assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_a_forced_conversion_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    source = saved(tmp_path / "model")
    old = converted(source, settings).path
    edit_tensors(source / WEIGHTS, lambda t: t["lm_head.weight"].fill_(torch.nan))  # the last to be written
    with pytest.raises(CorruptError):
        converted(source, settings, force=True)
    assert len(list(open_manifest_checkpoint(old).verify())) > 0


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is no checkpoint"):
        converted(saved(tmp_path / "model"), settings_in(tmp_path), out=out, force=True)
    assert (out / "letter.txt").read_text() == "dear"


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "model")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"needs [\d.]+ kB in .* and 1\.00 kB are free"):
        converted(source, settings_in(tmp_path))
    assert list((tmp_path / "home" / "checkpoints").iterdir()) == []


def test_a_disk_that_runs_full_leaves_the_place_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "model")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="ran full"):
        converted(source, settings_in(tmp_path))
    assert not (tmp_path / "home" / "checkpoints" / "model").exists()


def test_closing_a_conversion_half_way_leaves_the_place_free_and_the_next_run_clears_up(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    job = run(ConvertRequest(str(source), settings_in(tmp_path)))
    while not isinstance(next(job), Progress):
        pass
    job.close()
    place = tmp_path / "home" / "checkpoints" / "model"
    assert not place.exists()
    converted(source, settings_in(tmp_path), verify=True)
    assert list(place.parent.iterdir()) == [place]


def test_a_damaged_source_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    edit_tensors(source / WEIGHTS, lambda t: t["lm_head.weight"].fill_(torch.nan))  # the last to be written
    with pytest.raises(CorruptError):
        converted(source, settings_in(tmp_path))
    assert list((tmp_path / "home" / "checkpoints").iterdir()) == []


CONVERT = """
import sys
from pathlib import Path
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.settings import Settings
source, root = sys.argv[1:]
settings = Settings(home=Path(root) / "home", hf_cache=Path(root) / "hub")
for event in run(ConvertRequest(source, settings, force=True)):
    print("step", flush=True)
    sys.stdin.readline()
"""


def test_a_kill_at_any_moment_leaves_nothing_half_written_and_the_next_run_succeeds(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    n_steps = len(drained(run(ConvertRequest(str(source), settings_in(tmp_path / "dry"))))[0])
    moments = random.Random(0).sample(range(2, n_steps - 1), 2)
    place = tmp_path / "home" / "checkpoints" / "model"
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(source), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(moment):
                assert process.stdout.readline() == "step\n"
                process.stdin.write("on\n")
                process.stdin.flush()
            process.stdout.readline()
            process.kill()
        assert not place.exists()
        assert len(list(place.parent.iterdir())) == 1  # what the kill left; the next run sweeps it
    result = converted(source, settings_in(tmp_path), force=True, verify=True)
    assert [path.name for path in result.path.parent.iterdir()] == ["model"]


def test_a_conversion_in_progress_is_not_swept_by_another(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first = run(ConvertRequest(str(saved(tmp_path / "one")), settings))
    while not isinstance(next(first), Progress):
        pass
    converted(saved(tmp_path / "two"), settings)
    assert drained(first)[1].path.is_dir()
