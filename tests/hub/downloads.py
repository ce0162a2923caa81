"""Downloads from the Hub of the tests, and a model small enough to fetch a hundred times."""

import random
import time
from pathlib import Path
from typing import Any

from gptfast_cli.core.events import Event
from gptfast_cli.core.hub.remote import RetryPolicy
from gptfast_cli.core.jobs.download import Downloaded, DownloadRequest, run
from gptfast_cli.core.jobs.origins import DownloadOptions
from hub.fake_hub import FakeHub
from model_files import drained, settings_in

REPO = "org/model"
WEIGHTS = "model.safetensors"
QUICK = RetryPolicy(n_attempts=3, first_seconds=0.01, longest_asked_seconds=2.0)


def some_files(n_bytes: int = 300_000, *, seed: int = 0) -> dict[str, bytes]:
    """Files of a model that nobody could run: a download does not look inside."""
    return {
        "config.json": b'{"architectures": ["NoneThatIsKnown"]}',
        "tokenizer.json": b"{}" * 40,
        WEIGHTS: random.Random(seed).randbytes(n_bytes),
        "README.md": b"# Read me",
        "pytorch_model.bin": b"the same once more",
    }


def request_for(
    hub: FakeHub, folder: Path, source: str = REPO, n_workers: int = 8, *, force: bool = False, **options: Any
) -> DownloadRequest:
    terms = DownloadOptions(n_workers, QUICK, force)
    return DownloadRequest(source, settings_in(folder), endpoint=hub.url, **options, terms=terms)


def download(hub: FakeHub, folder: Path, source: str = REPO, **options: Any) -> Downloaded:
    return watched(hub, folder, source, **options)[1]


def watched(hub: FakeHub, folder: Path, source: str = REPO, **options: Any) -> tuple[list[Event], Downloaded]:
    """The events of a download and its result."""
    return drained(run(request_for(hub, folder, source, **options)))


def partials(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.gptfast-partial*"))


def wait_for_bytes(folder: Path, n_bytes: int) -> None:
    for _ in range(3000):
        if any(_size(path) >= n_bytes for path in partials(folder)):
            return
        time.sleep(0.01)
    raise AssertionError("the beginning does not grow")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it is in its place by now
        return 0
