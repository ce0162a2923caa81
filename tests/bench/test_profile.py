"""A trace is whole however the job ends, names the phases, and is bounded."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.backends.base import phase
from gptfast_cli.core.bench.profile import RECORDED_STEPS, profiled
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from llama_oracle import ours, random_llama
from model_files import drained

N_LAYERS = 1
OPERATIONS = ("project_qkv", "attend", "project_output", "gate_up", "down")


def decoding(n_tokens: int) -> Job[str]:
    engine = Engine(Runner(ours(random_llama(num_hidden_layers=N_LAYERS)), 1))
    sequence = Request(0, (1, 5, 9), Sampler(Sampling(), seed=0), Limits(n_tokens, 512, frozenset()))
    for step in engine.generate([sequence]):
        yield from step
    return "result"


def named(trace: Any) -> Counter[str]:
    """How often each of our own names is in a trace, whose form is checked on the way."""
    events = trace["traceEvents"]
    for event in events:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert event["ph"] != "X" or event["dur"] >= 0 <= event["ts"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_a_trace_names_the_phases_and_the_operations(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    events, result = drained(profiled(decoding(4), path))
    assert result == "result"
    assert str(path) in [event for event in events if isinstance(event, Note)][-1].text
    count = named(json.loads(path.read_text()))
    assert (count["prefill"], count["decode"]) == (1, 3)
    assert {count[name] for name in OPERATIONS} == {4 * N_LAYERS}
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]


def test_a_long_run_is_recorded_only_in_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    drained(profiled(decoding(2 * RECORDED_STEPS), path))
    assert named(json.loads(gzip.decompress(path.read_bytes())))["decode"] == RECORDED_STEPS


def test_an_interrupt_reaches_the_job_which_may_go_on(tmp_path: Path) -> None:
    def job() -> Job[str]:
        with phase("before"):
            pass
        try:
            yield Note("waiting")
        except KeyboardInterrupt:
            with phase("after"):
                pass
        yield Note("goes on")
        return "what there is"

    profiling = profiled(job(), tmp_path / "trace.json")
    next(profiling)
    assert profiling.throw(KeyboardInterrupt()) == Note("goes on")
    assert drained(profiling)[1] == "what there is"
    assert named(json.loads((tmp_path / "trace.json").read_text())) == {"before": 1, "after": 1}


def test_an_error_leaves_a_trace_of_what_came_before_it(tmp_path: Path) -> None:
    def job() -> Job[None]:
        with phase("before"):
            yield Note("working")
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        drained(profiled(job(), tmp_path / "trace.json"))
    assert named(json.loads((tmp_path / "trace.json").read_text())) == {"before": 1}


def test_a_job_that_is_closed_has_been_traced(tmp_path: Path) -> None:
    profiling = profiled(decoding(50), tmp_path / "trace.json")
    next(profiling)
    profiling.close()
    assert named(json.loads((tmp_path / "trace.json").read_text()))["prefill"] == 1


@pytest.mark.parametrize("name", ["trace.txt", "no-folder/trace.json", "folder.json"])
def test_a_path_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    begun = []

    def job() -> Job[None]:
        begun.append(True)
        yield Note("working")

    with pytest.raises(UsageError, match="--profile"):
        drained(profiled(job(), tmp_path / name))
    assert not begun


def test_without_a_recording_a_phase_is_nothing_at_all() -> None:
    with phase("decode") as entered:
        assert entered is None
