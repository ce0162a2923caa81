"""Where things are kept and what the environment says: the one place that reads environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user set outside the command line."""

    home: Path  # checkpoints/, current
    model: str | None  # the model to take where a command names none
    hf_cache: Path  # the Hugging Face hub cache, holding models--org--name folders


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment: GPTFAST_HOME, GPTFAST_MODEL, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hf_home = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    return Settings(
        home=Path(environment.get("GPTFAST_HOME") or cache / "gptfast").expanduser(),
        model=environment.get("GPTFAST_MODEL") or None,
        hf_cache=Path(environment.get("HF_HUB_CACHE") or hf_home / "hub").expanduser(),
    )
