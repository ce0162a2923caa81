"""What runs here: the commit of the program's own checkout, and each backend with its state."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

import gptfast_cli
from gptfast_cli.core.backends.cpu.compiler import compile_library, library_file
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.versions import BackendState, find_commit, find_versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout that stands for the program's own."""
    git(tmp_path, "init", "-q")
    (tmp_path / "code").write_text("1")
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", hf_cache=tmp_path / "hub")


def backend(settings: Settings, name: str) -> BackendState:
    (found,) = (each for each in find_versions(settings).backends if each.name == name)
    return found


def test_the_commit_is_that_of_the_programs_own_checkout(checkout: Path) -> None:
    assert find_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_checkout_that_was_changed_since_says_so(checkout: Path) -> None:
    (checkout / "code").write_text("2")
    assert find_commit(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_tag_does_not_stand_in_for_the_commit(checkout: Path) -> None:
    git(checkout, "tag", "-a", "v1", "-m", "first")
    assert find_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_program_installed_inside_of_a_strangers_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / "lib" / "site-packages"
    installed.mkdir(parents=True)
    assert find_commit(installed) is None


def test_without_git_a_checkout_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert find_commit(checkout) is None


@pytest.mark.parametrize(
    ("origin", "commit"),
    [
        ({"url": "https://host/repo", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "c0ffee"),
        ({"url": "file:///folder", "dir_info": {}}, None),
        (None, None),
    ],
)
def test_what_pip_installed_from_a_repository_has_the_commit_that_pip_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object, commit: str | None
) -> None:
    noted = tmp_path / "gptfast-1.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Name: gptfast\nVersion: 1\n")
    if origin is not None:
        (noted / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("gptfast") == "1"
    assert find_commit(tmp_path / "site-packages") == commit


def test_versions_are_those_of_the_loaded_modules(settings: Settings) -> None:
    found = find_versions(settings)
    assert (found.gptfast, found.torch) == (gptfast_cli.__version__, torch.__version__)


def test_the_cpu_engine_says_whether_it_has_been_compiled(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nfor word; do [ "$last" = -o ] && echo code > "$word"; last=$word; done; exit 0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    before = backend(settings, "cpu")
    compile_library(library_file(settings.kernel_cache))
    after = backend(settings, "cpu")
    assert before.available and before.state == "C++ engine, not compiled yet: the first run compiles it"
    assert after.available and after.state == "C++ engine, compiled for this machine"


def test_the_cpu_engine_is_not_available_without_a_compiler(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    state = "There is no C++ compiler (looked for no-such-compiler)."
    assert backend(settings, "cpu") == BackendState("cpu", available=False, state=state)
