"""`gptfast` and its make-believe twin, ready to be run."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of

FAKE = Path(__file__).parent / "fake_gptfast.py"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def gptfast(home: Path) -> CommandLine:
    """The program itself."""
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(home))


@pytest.fixture
def fake(home: Path) -> Callable[[str], CommandLine]:
    """The program with a make-believe job behind `generate`, by the name of its scenario."""
    return lambda scenario: CommandLine((sys.executable, str(FAKE), scenario), environment_of(home))
