"""A Hub and an S3 for each test."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from hub.fake_bucket import FakeS3
from hub.fake_hub import FakeHub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
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
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no config"))
    s3_server.reset()
    return s3_server
