"""Chat templates in tests have time enough on a busy machine, except where the limit is what is tested."""

import pytest

from gptfast_cli.core.tokenizers import chat


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that nothing right ever meets."""
    monkeypatch.setattr(chat.template, "RENDER_SECONDS", 60.0)


@pytest.fixture
def hurried(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is soon met."""
    monkeypatch.setattr(chat.template, "RENDER_SECONDS", 0.6)
