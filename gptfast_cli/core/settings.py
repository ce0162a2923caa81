"""Where things are kept, as the environment says; the twins of single options are read where those are declared."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Folders that outlive a command."""

    home: Path  # checkpoints/, current
    hf_cache: Path  # the Hugging Face hub cache, holding models--org--name folders


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment: GPTFAST_HOME, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hf_home = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    return Settings(
        home=Path(environment.get("GPTFAST_HOME") or cache / "gptfast").expanduser(),
        hf_cache=Path(environment.get("HF_HUB_CACHE") or hf_home / "hub").expanduser(),
    )
