"""A record says where it was measured, whatever the machine does not tell, and nothing about whose machine it is."""

import json
import os
import platform
import socket
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import gptfast_cli
from gptfast_cli.core.bench.environment import Environment, cpu_model, environment, last_level_cache_bytes
from gptfast_cli.core.versions import find_commit

CPU = torch.device("cpu")


def here() -> Environment:
    return environment(CPU, torch.bfloat16, "reference")


def test_it_says_what_ran_and_on_what() -> None:
    said = here()
    assert (said.gptfast, said.torch, said.python) == (
        gptfast_cli.__version__, torch.__version__, platform.python_version(),
    )  # fmt: skip
    assert (said.device, said.gpu, said.dtype, said.backend) == ("cpu", None, "bfloat16", "reference")
    assert said.threads == torch.get_num_threads()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(said.date)) < timedelta(minutes=5)
    assert said.n_cpus >= 1


def test_it_can_be_written_as_json() -> None:
    said = here()
    read = json.loads(json.dumps(asdict(said)))
    assert Environment(**{**read, "instruction_sets": tuple(read["instruction_sets"])}) == said


def test_it_names_no_host_user_or_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "private")
    monkeypatch.setattr(socket, "gethostname", lambda: "private")
    for variable in ("HOME", "USER", "LOGNAME"):
        monkeypatch.setenv(variable, "/private")
    said = json.dumps(asdict(here()))
    assert "private" not in said and str(Path(gptfast_cli.__file__).parents[1]) not in said


def test_the_commit_is_that_of_the_program() -> None:
    assert here().commit == find_commit()


def test_what_the_machine_does_not_say_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(os, "sysconf", unknown)
    assert here().memory_bytes is None
    assert cpu_model(tmp_path / "missing") is None
    assert last_level_cache_bytes(tmp_path / "missing") == 0


def test_what_linux_says_of_the_processor_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Chip 9 @ 3: GHz\n\nmodel name\t: other\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Chip 9 @ 3: GHz"
