"""A conversion that is stopped, at whatever moment, goes on with the next file and ends with the same bytes."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.resumable import write_checkpoint
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs import convert as convert_job
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.schemes import Weight
from model_files import converted, drained, saved, settings_in

SHARD_BYTES = 20_000


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(write_checkpoint, shard_bytes=SHARD_BYTES)
    monkeypatch.setattr(convert_job, "write_checkpoint", small)


def stopped(source: Path, out: Path, root: Path, *, at: float = 0.5, dtype: str | None = None) -> int:
    """Convert until this share of the bytes is written; returns how many files are finished by then."""
    job = run(ConvertRequest(str(source), settings_in(root), out=out, dtype=dtype))
    for event in job:
        if isinstance(event, Progress) and event.total is not None and event.done >= at * event.total:
            break
    job.close()
    (left,) = [path for path in out.parent.iterdir() if path.name.endswith("gptfast-resumable")]
    return len(list(left.glob("*.sha256.json")))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_finished_files_are_not_made_again_and_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "model")
    expected = files_in(converted(source, settings_in(tmp_path), out=tmp_path / "once").path)
    n_files = len([name for name in expected if name.endswith(".safetensors")])
    n_finished = stopped(source, tmp_path / "out", tmp_path)
    assert 1 < n_finished < n_files
    read: list[str] = []

    def watched(checkpoint: object, contents: object, adapter: object, name: str) -> Weight:
        read.append(name)
        return plain_read(checkpoint, contents, adapter, name)

    plain_read = convert_job._read
    monkeypatch.setattr(convert_job, "_read", watched)
    events, made = drained(run(ConvertRequest(str(source), settings_in(tmp_path), out=tmp_path / "out")))
    assert Note(f"Resuming: {n_finished} of {n_files} files were finished by an earlier run.") in events
    assert "head" in read
    assert "embedding" not in read
    assert files_in(made.path) == expected
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == made.n_bytes


@pytest.mark.parametrize("other", ["dtype", "source"])
def test_what_is_left_of_another_conversion_is_not_built_upon(tmp_path: Path, other: str) -> None:
    source = saved(tmp_path / "model")
    stopped(source, tmp_path / "out", tmp_path, dtype="bfloat16" if other == "dtype" else None)
    if other == "source":
        source = saved(tmp_path / "another", seed=1)
    events, made = drained(run(ConvertRequest(str(source), settings_in(tmp_path), out=tmp_path / "out", verify=True)))
    assert not any(isinstance(event, Note) and "Resuming" in event.text for event in events)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
    once = converted(source, settings_in(tmp_path), out=tmp_path / "once").path
    weights = [{n: c for n, c in files_in(folder).items() if n != "gptfast.json"} for folder in (made.path, once)]
    assert weights[0] == weights[1]


def test_an_interrupt_says_that_finished_files_are_kept(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    job = run(ConvertRequest(str(source), settings_in(tmp_path), out=tmp_path / "out"))
    while not isinstance(next(job), Progress):
        pass
    output = job.throw(KeyboardInterrupt())
    assert output == Note("Interrupted. Finished files are kept: run the same command again to resume.")
    with pytest.raises(KeyboardInterrupt):
        next(job)
    assert not (tmp_path / "out").exists()


PROGRAM = """
import functools, os, random, shutil, signal, sys, time
from pathlib import Path
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.checkpoints.resumable import write_checkpoint
from gptfast_cli.core.events import Note
from gptfast_cli.core.jobs import convert
from gptfast_cli.core.settings import Settings

source, root, n_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
settings = Settings(home=root / "home", hf_cache=root / "hub")
convert.write_checkpoint = functools.partial(write_checkpoint, shard_bytes=1_000_000)
place = root / "home" / "checkpoints" / "model"

def child(out):
    process = os.fork()
    if process == 0:
        for event in convert.run(convert.ConvertRequest(source, settings, out=out)):
            if isinstance(event, Note) and "Resuming" in event.text:
                print("on", flush=True)
        os._exit(0)
    return process

begin = time.monotonic()
os.waitpid(child(root / "once"), 0)
seconds = time.monotonic() - begin
expected = {path.name: path.read_bytes() for path in (root / "once").iterdir()}
moments = random.Random(0)
killed = 0
reach = seconds / 3
while killed < n_kills:
    process = child(None)
    time.sleep(moments.uniform(0, reach))
    os.kill(process, signal.SIGKILL)
    was_killed = os.waitpid(process, 0)[1] == signal.SIGKILL
    killed += was_killed
    reach *= 1.1 if was_killed else 0.5  # kills are to fall among the files however fast the machine is just now
    if place.exists():
        assert {path.name: path.read_bytes() for path in place.iterdir()} == expected
        print("whole", flush=True)
        shutil.rmtree(place)
os.waitpid(child(None), 0)
assert {path.name: path.read_bytes() for path in place.iterdir()} == expected
assert [path.name for path in place.parent.iterdir()] == ["model"]
assert list(open_manifest_checkpoint(place).verify())
print("end", flush=True)
"""


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_at_random_moments_leaves_the_place_free_or_whole(tmp_path: Path, n_kills: int) -> None:
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 6}
    source = saved(tmp_path / "model", num_hidden_layers=6, vocab_size=1000, **sizes)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path), str(n_kills)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert lines[-1] == "end"
    assert "on" in lines or n_kills < 50  # some run found finished files
