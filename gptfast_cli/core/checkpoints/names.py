"""The names that a model can be called by: those bundled, those in the store, those in the Hugging Face cache."""

import importlib.resources
from pathlib import Path

from gptfast_cli.core.checkpoints.hub_cache import cached_repos
from gptfast_cli.core.checkpoints.store import open_store
from gptfast_cli.core.settings import Settings

BUNDLED = ("tiny", "tiny-draft")


def model_names(settings: Settings) -> list[str]:
    """Every name that stands for a model here and now, without repetition; folders have no names."""
    stored = [entry.name for entry in open_store(settings).entries()]
    return list(dict.fromkeys([*BUNDLED, *stored, *cached_repos(settings.hf_cache)]))


def free_name(name: str) -> str:
    """A name for a folder's model: its own, or one beside it, since a bundled name always means the bundled model."""
    return f"model-{name}" if name in BUNDLED else name


def bundled_folder(name: str) -> Path:
    """The folder of a bundled checkpoint inside the installed package."""
    return Path(str(importlib.resources.files("gptfast_cli"))) / "bundled" / name
