"""A record says where it was measured, whatever the machine does not tell, and nothing about whose machine it is."""

import json
import platform
import socket
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import gptfast_cli
from gptfast_cli.core import device as memory
from gptfast_cli.core.bench import environment as machine
from gptfast_cli.core.bench import environment as module
from gptfast_cli.core.bench.environment import Environment, environment

CPU = torch.device("cpu")


def here() -> Environment:
    return environment(CPU, torch.bfloat16)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that stands for the program's own."""
    git(tmp_path, "init", "-q")
    (tmp_path / "code").write_text("1")
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    return tmp_path


def test_it_says_what_ran_and_on_what() -> None:
    said = here()
    assert (said.gptfast, said.torch, said.python) == (
        gptfast_cli.__version__, torch.__version__, platform.python_version(),
    )  # fmt: skip
    assert (said.device, said.gpu, said.dtype, said.threads) == ("cpu", None, "bfloat16", torch.get_num_threads())
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


def test_the_commit_is_that_of_the_programs_own_checkout(checkout: Path) -> None:
    assert here().commit == git(checkout, "rev-parse", "HEAD")


def test_a_checkout_that_was_changed_since_says_so(checkout: Path) -> None:
    (checkout / "code").write_text("2")
    assert here().commit == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_tag_does_not_stand_in_for_the_commit(checkout: Path) -> None:
    git(checkout, "tag", "-a", "v1", "-m", "first")
    assert here().commit == git(checkout, "rev-parse", "HEAD")


def test_a_program_installed_inside_of_a_strangers_checkout_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "lib" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "_CHECKOUT", installed)
    assert here().commit is None


def test_what_the_machine_does_not_say_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "missing")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(memory.os, "sysconf", unknown)
    said = here()
    assert said.commit is said.cpu is said.memory_bytes is None
    assert machine.last_level_cache_bytes() == 0


def test_what_linux_says_of_the_processor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Chip 9 @ 3: GHz\n\nmodel name\t: other\n")
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    assert machine.cpu_model() == "Chip 9 @ 3: GHz"
