"""The recording for GPUs runs, goes on where it stopped, and holds what it promises; here on a CPU, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "tests/gpu/record.py", "--device", "cpu", "--small"]


def record(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


OF_EACH_KIND = {"bandwidth", "correct-int4-bfloat16", "bench-small-int4"}
PARTS = {
    "bandwidth",
    *(f"correct-{scheme}-{dtype}" for scheme in ("plain", "int8", "int4") for dtype in ("float32", "bfloat16")),
    *(f"bench-small-{scheme}" for scheme in ("plain", "int8", "int4")),
}


@pytest.mark.parametrize(
    "recorded",
    [OF_EACH_KIND, pytest.param(PARTS - {"correct-int8-float32"}, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_every_part_is_recorded_once(tmp_path: Path, recorded: set[str]) -> None:
    for name in PARTS - recorded:
        (tmp_path / f"{name}.json").write_text('"kept"')
    outcome = record(tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert records.keys() == PARTS
    assert {name for name, part in records.items() if part != "kept"} == recorded
    for name in recorded:
        part = records[name]
        assert "error" not in part
        if name.startswith("correct"):
            assert part["is_within_bound"] and part["greedy_tokens"] == 32
            assert part["greedy_different"] == 0 or "bfloat16" in name
        if name.startswith("bench"):
            assert [row["test"] for row in part["rows"]] == ["tg4", "tg4"]
            assert all(row["error"] is None for row in part["rows"]) and set(part["compile"]) == {"1", "2"}
    assert records["bandwidth"]["copy_gbps"]["max"] > 0


def test_a_part_that_takes_all_of_the_time_has_an_error(tmp_path: Path) -> None:
    outcome = record(tmp_path, "--part", "bench-small-int4", "--minutes", "0.001")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((tmp_path / "bench-small-int4.json").read_text()) == {"error": "took more than 0.001 minutes"}
