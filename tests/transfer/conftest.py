"""A Hub for each test, whatever the machine's own settings for the real one are."""

from collections.abc import Iterator

import huggingface_hub
import pytest

from transfer.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    with FakeHub().running() as hub:
        yield hub
    huggingface_hub.close_session()
