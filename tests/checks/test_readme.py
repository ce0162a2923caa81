"""The README: its two set-up lines, which .ci/run and readers execute, and its size."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def set_up_line(marker: str) -> str:
    readme = (ROOT / "README.md").read_text()
    found = re.findall(rf"<!-- set-up: {marker} -->\n```sh\n(.*)\n```\n", readme)
    assert len(found) == 1, f"the README must mark one line with `set-up: {marker}`"
    return found[0]


def test_the_readme_stays_under_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize(("marker", "ends"), [("run", 'gptfast generate "Once upon a time"'), ("test", "pytest -n 2")])
def test_a_set_up_line_makes_its_own_venv_and_names_the_tested_torch(marker: str, ends: str) -> None:
    line = set_up_line(marker)
    assert line.startswith("python3 -m venv ")
    assert "torch==2.13.0" in line and line.endswith(ends)


def test_ci_runs_the_test_line_as_the_readme_has_it(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace(set_up_line("test"), "echo it ran; test ! -t 0; exit 3"))
    outcome = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.returncode == 3
    assert outcome.stdout.splitlines()[-1] == "it ran"
