"""What all tests share: a clean environment, no deadlines, one thread each, and a process for each file's tests."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# Settings of programs and libraries that tests use: a test that needs one sets it.
_CLEARED_PREFIXES = (
    *("GPTFAST_", "_GPTFAST_", "FAKE_"),
    *("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_", "LM_HARNESS_", "TIKTOKEN_"),
    *("AWS_", "BOTO_", "XDG_"),
    *("TORCH", "NCCL_", "GLOO_", "MASTER_", "LOCAL_", "GROUP_", "ROLE_"),
    *("CLICOLOR", "TYPER_", "_TYPER_"),
)
_CLEARED = {"RANK", "WORLD_SIZE", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_ACTIONS", "DISABLE_MULTIPROC"}
_CLEARED_SUFFIX = "_proxy"
_KEPT = {"GPTFAST_KERNELS", "GPTFAST_CPU_ARCH"}  # which CPU engine is tested
for _name in set(os.environ) - _KEPT:
    if _name.startswith(_CLEARED_PREFIXES) or _name in _CLEARED or _name.lower().endswith(_CLEARED_SUFFIX):
        del os.environ[_name]

# before torch is imported, and for the programs that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the CPU engine is compiled once for all tests, and again when its sources change
os.environ.setdefault("GPTFAST_KERNELS", str(Path(tempfile.gettempdir()) / f"gptfast-kernels-of-tests-{os.getuid()}"))

settings.register_profile("untimed", deadline=None, max_examples=60)  # timing never decides a test
settings.load_profile("untimed")

# tests press Ctrl-C; a job that a shell runs in the background inherits that it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadFileScheduling":
    """All tests of a file run in one process, which makes its fixtures once and imports once what it alone needs."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # files with few tests are not the short ones
    return LoadFileScheduling(config, log)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Nothing of the test is recorded for gradients."""
    import torch

    with torch.inference_mode():
        yield
