"""A Hub and an S3 for each test, whatever the machine's own settings for the real ones are."""

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from transfer.fake_bucket import FakeS3
from transfer.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    with FakeHub().running() as hub:
        yield hub
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FakeS3]:
    with FakeS3().running() as server:
        yield server


@pytest.fixture
def s3(s3_server: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeS3:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no config"))
    s3_server.reset()
    return s3_server
