"""The rules that tools can hold: style, types, and the floors that imports must keep to."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_LINTER = "from importlinter.cli import lint_imports_command; lint_imports_command()"
TOOLS = {
    "ruff check": ["-m", "ruff", "check"],
    "ruff format": ["-m", "ruff", "format", "--check"],
    "mypy": ["-m", "mypy"],
    "import-linter": ["-c", IMPORT_LINTER, "--no-cache"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_found_by(tool: str) -> None:
    outcome = subprocess.run(
        [sys.executable, *TOOLS[tool]], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
