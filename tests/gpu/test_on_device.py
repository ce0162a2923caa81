"""On a GPU the program itself runs: its options are known there, and the bundled model answers on the device."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
    # before 0.28 it called an option --DEVICE where its values are shown as DEVICE
    pytest.mark.skipif(version("typer") < "0.28", reason="needs the typer that pyproject.toml asks for"),
]


@pytest.mark.parametrize("options", [(), ("--compile",)])
def test_the_bundled_model_answers_on_the_device(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "gptfast_cli", "generate", "Once upon a time", "-m", "tiny", "--json"]
    command += ["--device", "cuda", "--temperature", "0", "--max-new-tokens", "20", *options]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "on cuda" in outcome.stderr
    assert len(json.loads(outcome.stdout)["samples"][0]["token_ids"]) == 20
