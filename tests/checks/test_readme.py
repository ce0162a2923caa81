"""The README's two set-up lines: they exist, name the tested torch, and the test line is the one that .ci/run runs."""

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


@pytest.mark.parametrize("page", ["README.md", "gptfast_cli/docs/security.md", "gptfast_cli/bundled/recipe/README.md"])
def test_links_of_a_page_lead_to_files_and_headings_that_are_there(page: str) -> None:
    links = re.findall(r"\]\(([^)\s:]*)\)", (ROOT / page).read_text())
    for link in links:
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name) if name else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link


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
