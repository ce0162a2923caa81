"""Folders are where the environment says, each by the variable that its own tools use."""

from pathlib import Path

import pytest

from gptfast_cli.core.settings import load_settings


@pytest.mark.parametrize(
    ("environment", "home", "hf_cache"),
    [
        ({}, "~/.cache/gptfast", "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/gptfast", "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/gptfast", "/h/hub"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "~/.cache/gptfast", "/c"),
        ({"GPTFAST_HOME": "~/g", "XDG_CACHE_HOME": "/x"}, "~/g", "/x/huggingface/hub"),
        ({"GPTFAST_HOME": "", "HF_HOME": ""}, "~/.cache/gptfast", "~/.cache/huggingface/hub"),
    ],
)
def test_folders_follow_the_environment(environment: dict[str, str], home: str, hf_cache: str) -> None:
    settings = load_settings(environment)
    assert settings.home == Path(home).expanduser()
    assert settings.hf_cache == Path(hf_cache).expanduser()
