"""Quantizing with search and gptq: what they gain, what is reported and written, and how a stopped run goes on."""

import hashlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import NetworkError, UsageError
from gptfast_cli.core.evals.held_out import measured_content
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions, bundled_calibration
from gptfast_cli.core.jobs.quantize import Quantized, QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings
from model_files import drained, saved, settings_in

FLOAT32 = RuntimeConfig("cpu", "float32", 1)
INT4 = AllocationOptions("int4")


def request(settings: Settings, model: str = "tiny-draft", **options: Any) -> QuantizeRequest:
    options = {"storage": INT4, "rounding": "gptq", "runtime": FLOAT32} | options
    return QuantizeRequest(settings, model=model, **options)


def quantize(settings: Settings, model: str = "tiny-draft", **options: Any) -> Quantized:
    return drained(run(request(settings, model, **options)))[1]


def kld(settings: Settings, model: str, group_size: int, rounding: str) -> float:
    fidelity = quantize(settings, model, storage=AllocationOptions("int4", group_size), rounding=rounding).fidelity
    assert fidelity is not None
    return fidelity.divergence.kld_mean


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("model", ["tiny-draft", pytest.param("tiny", marks=pytest.mark.slow)])
def test_gptq_loses_less_than_search_and_that_less_than_nearest(tmp_path: Path, model: str, group_size: int) -> None:
    settings = settings_in(tmp_path)
    nearest, search, gptq = (kld(settings, model, group_size, name) for name in ("nearest", "search", "gptq"))
    assert gptq < search < nearest
    assert gptq <= 0.7 * nearest


def test_the_name_and_the_manifest_say_what_was_done_and_learned_from(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(" ".join(bundled_calibration()[:80]))
    options = CalibrationOptions(text=str(tmp_path / "notes.txt"), limit=20, seq_length=100)
    quantized = quantize(settings_in(tmp_path), calibration=options)
    assert quantized.name == "tiny-draft:int4-g32-gptq" and quantized.scheme == "int4-g32-gptq"
    provenance = open_manifest_checkpoint(quantized.path).manifest.provenance
    learned = provenance.calibration
    assert provenance.rounding == "gptq" and learned is not None
    assert (learned.source, learned.tokens) == ("notes.txt", 20 * 100)
    assert learned.sha256 == hashlib.sha256((tmp_path / "notes.txt").read_bytes()).hexdigest()
    assert (quantized.path / "gptfast.json").stat().st_size < 60_000


def test_the_bundled_text_is_the_usual_one_and_other_roundings_learn_from_none(tmp_path: Path) -> None:
    learned = {}
    for rounding in ("search", "gptq"):
        quantized = quantize(settings_in(tmp_path), rounding=rounding, fidelity=False)
        learned[rounding] = open_manifest_checkpoint(quantized.path).manifest.provenance.calibration
    assert learned["search"] is None
    assert learned["gptq"] is not None
    assert learned["gptq"].source == "bundled"
    assert 12 * 256 <= learned["gptq"].tokens < 12 * 256 + 512


def test_time_and_errors_are_reported_layer_by_layer(tmp_path: Path) -> None:
    events = drained(run(request(settings_in(tmp_path))))[0]
    output = [event.text for event in events if isinstance(event, Note) and event.text.startswith("layer ")]
    assert [line.partition(":")[0] for line in output] == ["layer 1 of 2", "layer 2 of 2"]
    for line in output:
        shares = [float(part.split()[-1].rstrip("%")) for part in line.partition("off by ")[2].split(", ")]
        assert len(shares) == 4 and all(0 < share < 15 for share in shares)
        assert len(line) <= 100


def test_a_text_that_is_measured_on_must_not_be_learned_from(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(measured_content(None))
    options = CalibrationOptions(text=str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError, match=r"bundled held-out text: overlaps .*notes\.txt"):
        quantize(settings_in(tmp_path), calibration=options)
    (tmp_path / "story.txt").write_text("\n\n".join(bundled_calibration()[:9]))
    with pytest.raises(UsageError, match=r"story\.txt: overlaps .*bundled"):
        quantize(settings_in(tmp_path), fidelity_text=tmp_path / "story.txt")
    assert not (tmp_path / "home").exists()
    assert quantize(settings_in(tmp_path), calibration=options, fidelity=False).is_written


def test_matrices_that_too_few_tokens_reached_are_rounded_by_search_and_said_so(tmp_path: Path) -> None:
    """Of tiny-draft's matrices `down` has 256 columns, the others 64: ten documents are enough for these alone."""
    options = CalibrationOptions(limit=10)
    events = drained(run(request(settings_in(tmp_path), calibration=options)))[0]
    warned = [event.text for event in events if isinstance(event, Note) and "rounded by search" in event.text]
    assert [line.partition(":")[0] for line in warned] == ["layers.0.down", "layers.1.down"]
    assert "tokens reached its 256 columns" in warned[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rounding": "search", "calibration": CalibrationOptions(limit=3)},
            "search rounding uses no calibration text",
        ),
        ({"rounding": "nearest", "calibration": CalibrationOptions(text="bundled")}, "nearest rounding uses no cal"),
        ({"calibration": CalibrationOptions(text="f", tasks="wikitext")}, "exclude each other"),
        ({"calibration": CalibrationOptions(limit=0)}, "--calibration-limit 0: it must be 1 or more"),
        ({"calibration": CalibrationOptions(seq_length=1)}, "--calibration-seq-length 1: it must be 2 or more"),
        ({"calibration": CalibrationOptions(block_size=0)}, "--blocksize 0: it must be 1 or more"),
        ({"calibration": CalibrationOptions(damping=0.0)}, "--percdamp 0: it must be above 0"),
        ({"calibration": CalibrationOptions(text="/no/such/file")}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(UsageError, match=message):
        quantize(settings, **options)
    assert not settings.home.exists()


def test_a_model_without_a_tokenizer_is_sent_to_search(tmp_path: Path) -> None:
    model = str(saved(tmp_path / "model"))
    with pytest.raises(UsageError, match="Calibration requires a tokenizer") as refused:
        quantize(settings_in(tmp_path), model)
    assert "--rounding search" in refused.value.hint
    assert quantize(settings_in(tmp_path), model, rounding="search").name == "model:int4-g32-search"


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match=r"empty\.txt: is too short to calibrate on"):
        quantize(settings_in(tmp_path), calibration=CalibrationOptions(text=str(tmp_path / "empty.txt")))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_a_run_that_goes_on_ends_with_the_same_bytes_and_fidelity(tmp_path: Path, n_blocks: int) -> None:
    once = quantize(settings_in(tmp_path / "once"))
    settings = settings_in(tmp_path)
    job = run(request(settings))
    while next(job) != Progress("quantize", n_blocks, 4, "blocks"):
        pass
    job.close()
    events, again = drained(run(request(settings)))
    assert Note(f"Resuming: {n_blocks} of 4 blocks were finished by an earlier run.") in events
    assert files_in(again.path) == files_in(once.path)
    assert again.fidelity == once.fidelity


@pytest.mark.parametrize("other", [CalibrationOptions(limit=40), CalibrationOptions(damping=0.02)])
def test_blocks_of_another_calibration_are_not_built_upon(tmp_path: Path, other: CalibrationOptions) -> None:
    settings = settings_in(tmp_path)
    job = run(request(settings, calibration=other))
    while next(job) != Progress("quantize", 2, 4, "blocks"):
        pass
    job.close()
    assert not any("Resuming" in event.text for event in drained(run(request(settings)))[0] if isinstance(event, Note))


PROGRAM = """
import os, signal, sys
from pathlib import Path
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.events import Progress
from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
from gptfast_cli.core.quantize import model_quantizer
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import Settings

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

settings = Settings(home=Path(sys.argv[1]) / "home", hf_cache=Path(sys.argv[1]) / "hub")
storage, runtime = AllocationOptions("int4"), RuntimeConfig("cpu", "float32", 1)
job = run(QuantizeRequest(settings, "tiny-draft", storage, "gptq", runtime=runtime))
for event in job:
    if event == Progress("quantize", 2, 4, "blocks"):
        model_quantizer.output_error = die  # in the middle of the second layer
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_run_killed_inside_of_a_layer_goes_on_with_that_layer_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    once = quantize(settings_in(tmp_path / "once"))
    killed = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    events, again = drained(run(request(settings_in(tmp_path))))
    assert Note("Resuming: 2 of 4 blocks were finished by an earlier run.") in events
    assert files_in(again.path) == files_in(once.path)


class Task:
    """As lm_eval's tasks are."""

    def __init__(self, *, has_training: bool = True, error: Exception | None = None) -> None:
        self._has_training, self._error = has_training, error

    def has_training_docs(self) -> bool:
        return self._has_training

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def training_docs(self) -> list[str]:
        if self._error is not None:
            raise self._error
        return bundled_calibration()[:100]

    def doc_to_text(self, document: str) -> str:
        return document.split(" ", 1)[0]

    def doc_to_target(self, document: str) -> str:
        return document.split(" ", 1)[1]


def with_tasks(monkeypatch: pytest.MonkeyPatch, **tasks: Any) -> None:
    """An lm_eval that has these tasks."""

    class TaskManager:
        def __init__(self) -> None:
            self.all_tasks = list(tasks)

        def load_task_or_group(self, name: str) -> dict[str, Any]:
            return {name: tasks[name]}

    module = types.ModuleType("lm_eval.tasks")
    module.TaskManager = TaskManager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", types.ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", module)


def test_tasks_are_learned_from_by_their_training_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tasks(monkeypatch, wikitext=Task(), group={"a": Task(), "b": Task()})
    options = CalibrationOptions(tasks="wikitext, group", limit=60, seq_length=100)
    quantized = quantize(settings_in(tmp_path), calibration=options)
    learned = open_manifest_checkpoint(quantized.path).manifest.provenance.calibration
    assert learned is not None and learned.source == "wikitext, group"
    assert learned.tokens > 60 * 20


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (None, UsageError, "lm_eval has no task called 'wikitext'"),
        (Task(has_training=False), UsageError, "wikitext has only test documents"),
        (
            Task(error=ConnectionError("no route")),
            NetworkError,
            "the data of wikitext could not be downloaded: ConnectionError",
        ),
    ],
)
def test_tasks_that_cannot_be_had_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task | None, error: type[Exception], message: str
) -> None:
    with_tasks(monkeypatch, **({} if task is None else {"wikitext": task}))
    with pytest.raises(error, match=message):
        quantize(settings_in(tmp_path), calibration=CalibrationOptions(tasks="wikitext"))


def test_where_lm_eval_is_missing_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match="lm_eval, which is not installed") as refused:
        quantize(settings_in(tmp_path), calibration=CalibrationOptions(tasks="wikitext"))
    assert refused.value.hint == "pip install lm_eval 'datasets>=4'"
