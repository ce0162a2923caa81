"""The results of the tests do not depend on settings of the person who runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": "/nosuch",
    "HUGGING_FACE_HUB_TOKEN": "x",
    "TRANSFORMERS_OFFLINE": "1",
    "AWS_PROFILE": "x",
    "GPTFAST_MODEL": "nosuch",
    "GPTFAST_THREADS": "0",
    "XDG_CONFIG_HOME": "/nosuch",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "NO_COLOR": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "WORLD_SIZE": "2",
}
KEPT = {"GPTFAST_KERNELS": "/kernels", "GPTFAST_CPU_ARCH": "x86-64"}


def test_settings_are_cleared_before_any_test_runs() -> None:
    script = "import conftest, json, os; print(json.dumps(dict(os.environ)))"
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, cwd=TESTS, env={**os.environ, **SET, **KEPT}, capture_output=True, check=True)
    environment = json.loads(shown.stdout)
    assert set(SET) & set(environment) == set()
    assert KEPT.items() <= environment.items()
