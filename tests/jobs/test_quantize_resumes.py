"""A quantization that is stopped, at whatever moment, goes on when it is given again and ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import Tensor

from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs import quantize as quantize_job
from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import QuantizedScheme, Weight
from model_files import drained, saved, settings_in

PROGRAM = """
import os, signal, sys
from pathlib import Path
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings

source, root, *deaths = sys.argv[1:]

def quantize(root):
    settings = Settings(home=Path(root) / "home", hf_cache=Path(root) / "hub")
    storage = AllocationOptions("int4")
    for _ in run(QuantizeRequest(settings, model=source, storage=storage, runtime=RuntimeConfig("cpu", "float32", 1))):
        pass

def die_at(n):  # of the calls that change what is on the disk
    left = [n]
    def wrapped(function):
        def call(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*arguments, **options)
        return call
    for name in ("fsync", "mkdir", "rename", "replace", "unlink", "open"):
        setattr(os, name, wrapped(getattr(os, name)))

print("ready", flush=True)
if not deaths:
    quantize(root)
else:  # what is imported late is imported once, and not by each child
    quantize(os.path.join(root, "warm-up"))
for death in deaths:
    n, _, folder = death.partition(":")
    child = os.fork()
    if child == 0:
        if n:
            die_at(int(n))
        quantize(os.path.join(root, folder))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
    if (Path(root) / "home" / "checkpoints" / "model@int4-g32").exists():
        break
"""

INT4 = AllocationOptions("int4")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def quantized(source: Path, root: Path, *, force: bool = False) -> dict[str, bytes]:
    """Quantize to the end, here; the files that come out, and nothing else may be left beside them."""
    request = QuantizeRequest(
        settings_in(root), model=str(source), storage=INT4, runtime=RuntimeConfig("cpu", "float32", 1), force=force
    )
    place = drained(run(request))[1].path
    assert list(open_manifest_checkpoint(place).verify())
    return result_in(root)


def start(source: Path, root: Path, *deaths: str) -> "subprocess.Popen[str]":
    """A process that quantizes, or whose children do: each dies at its call N in the folder F of `N:F`, or lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), str(root), *deaths], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def result_in(root: Path) -> dict[str, bytes]:
    """The files of the checkpoint, and nothing may be left beside them."""
    (place,) = (root / "home" / "checkpoints").iterdir()
    assert place.name == "model@int4-g32"
    return files_in(place)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_between_any_two_writes_goes_on_and_ends_the_same(tmp_path: Path, step: int) -> None:
    source = saved(tmp_path / "model")
    expected = quantized(source, tmp_path / "once")
    moments = range(0, 60, step)  # the last ones are after the checkpoint is in its place, or after all of it
    deaths = [death for n in moments for death in (f"{n}:{n}", f":{n}")]
    with start(source, tmp_path, *deaths) as process:
        ends = [int(line) for line in process.stdout or ()]
    n_killed = ends[::2].count(signal.SIGKILL)
    assert ends == [signal.SIGKILL, 0] * n_killed + [0, 0] * (len(moments) - n_killed)
    assert 32 < n_killed * step < 60
    for n in moments:
        assert result_in(tmp_path / str(n)) == expected


def test_runs_that_die_one_after_another_build_on_what_each_of_them_left(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    expected = quantized(source, tmp_path / "once")
    with start(source, tmp_path, *(f"{n}:" for n in range(90))) as process:
        ends = [int(line) for line in process.stdout or ()]
    assert 10 < len(ends) < 30  # each had some blocks less to write, or it would have taken more
    assert set(ends[:-1]) == {signal.SIGKILL}
    assert result_in(tmp_path) == expected


def test_an_interrupt_says_that_finished_blocks_are_kept(tmp_path: Path) -> None:
    job = run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4, runtime=RuntimeConfig(device="cpu")))
    while next(job) != Progress("quantize", 3, 6, "blocks"):
        pass
    assert job.throw(KeyboardInterrupt()) == Note(
        "Interrupted. Finished blocks are kept: run the same command again to resume."
    )
    with pytest.raises(KeyboardInterrupt):
        next(job)
    again = drained(run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4)))[0]
    assert Note("Resuming: 3 of 6 blocks were finished by an earlier run.") in again


def stopped_after(n_blocks: int, root: Path, out: Path, *, model: str = "tiny", mode: str = "int4") -> Path:
    """The folder in which a run that was closed after some blocks has left them."""
    request = QuantizeRequest(settings_in(root), model=model, storage=AllocationOptions(mode), out=out)
    job = run(request)
    while not (isinstance(event := next(job), Progress) and event.done == n_blocks):
        pass
    job.close()
    (left,) = [path for path in out.parent.iterdir() if path.name.endswith("gptfast-resumable")]
    return left


def test_a_finished_block_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(4, tmp_path, tmp_path / "out")
    made: list[tuple[int, ...]] = []
    rounding = quantizers["nearest"]

    class Watched:
        def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
            made.append(tuple(matrix.shape))
            return rounding.quantize(matrix, scheme, group_size)

    monkeypatch.setattr(quantize_job, "quantizers", {"nearest": Watched()})
    drained(run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4, out=tmp_path / "out")))
    assert len(made) == 4  # the matrices of the last layer; after it comes a norm


@pytest.mark.parametrize("other", [{"model": "tiny-draft"}, {"mode": "int8"}])
def test_what_is_left_of_other_work_for_the_same_place_is_not_built_upon(tmp_path: Path, other: dict[str, str]) -> None:
    left = stopped_after(2, tmp_path, tmp_path / "out", **other)
    events, _ = drained(run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4, out=tmp_path / "out")))
    assert not any(isinstance(event, Note) and "Resuming" in event.text for event in events)
    assert not left.exists()


def test_a_run_that_goes_on_measures_the_same_fidelity(tmp_path: Path) -> None:
    request = QuantizeRequest(
        settings_in(tmp_path), model="tiny", storage=INT4, runtime=RuntimeConfig("cpu", "float32")
    )
    job = run(request)
    while next(job) != Progress("quantize", 4, 6, "blocks"):
        pass
    job.close()
    resumed = drained(run(request))[1]
    fresh = drained(run(QuantizeRequest(settings_in(tmp_path / "b"), "tiny", INT4, runtime=request.runtime)))[1]
    assert resumed.fidelity == fresh.fidelity


@pytest.mark.slow
def test_a_run_killed_at_30_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
    source = saved(tmp_path / "model", num_hidden_layers=12, vocab_size=2000, **sizes)
    with start(source, tmp_path / "once"):
        begin = time.monotonic()
    seconds = time.monotonic() - begin
    expected = result_in(tmp_path / "once")
    moments, n_killed, n_whole = random.Random(0), 0, 0
    place = tmp_path / "home" / "checkpoints" / "model@int4-g32"
    while n_killed < 30:
        process = start(source, tmp_path)
        time.sleep(moments.uniform(0, seconds / 3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            n_killed += 1
        elif place.exists():  # it was quicker
            n_whole += 1
            assert files_in(place) == expected
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
        assert process.stdout is not None
        process.stdout.close()
    with start(source, tmp_path):
        pass
    assert result_in(tmp_path) == expected


MEASURE = """
import sys
from pathlib import Path
import torch
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings
source, root, rounding = sys.argv[1:]
settings = Settings(home=Path(root) / "home", hf_cache=Path(root) / "hub")

def peak():  # not ru_maxrss, which a child takes over from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
runtime = RuntimeConfig("cpu", "float32")
list(run(QuantizeRequest(settings, source, storage=AllocationOptions("int4"), rounding=rounding, runtime=runtime)))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path, rounding: str) -> None:
    """A block has 12 MB in float32: 8 of them or 24, the peak may differ by two."""
    from chat_model import chat_model

    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
    peaks = []
    for n_layers in (8, 24):
        source = chat_model(tmp_path / f"model-{n_layers}")
        for stale in source.glob("*.safetensors"):
            stale.unlink()
        saved(source, num_hidden_layers=n_layers, vocab_size=260, bos_token_id=256, eos_token_id=257, **sizes)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"home-{n_layers}"), rounding],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 2 * 12.6e6
    assert peaks[1] < 2 * 12.6e6 + 1e9


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_sigterm_keeps_finished_blocks_too(tmp_path: Path) -> None:
    job = run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4, runtime=RuntimeConfig(device="cpu")))
    while next(job) != Progress("quantize", 3, 6, "blocks"):
        pass
    with pytest.raises(SystemExit):
        job.throw(SystemExit(143))
    again = drained(run(QuantizeRequest(settings_in(tmp_path), model="tiny", storage=INT4)))[0]
    assert Note("Resuming: 3 of 6 blocks were finished by an earlier run.") in again
