"""Where things are kept, as the environment says; the twins of single options are read where those are declared."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Folders that outlive a command.

    home:     checkpoints/, kernels/, current
    hf_cache: the Hugging Face hub cache, holding models--org--name folders
    kernels:  what was compiled on this machine; None is the home's own folder
    """

    home: Path
    hf_cache: Path
    kernels: Path | None = None

    @property
    def kernel_cache(self) -> Path:
        """The folder of what was compiled on this machine."""
        return self.kernels or self.home / "kernels"


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment: GPTFAST_HOME, GPTFAST_KERNELS, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hf_home = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    return Settings(
        home=Path(environment.get("GPTFAST_HOME") or cache / "gptfast").expanduser(),
        hf_cache=Path(environment.get("HF_HUB_CACHE") or hf_home / "hub").expanduser(),
        kernels=Path(kernels).expanduser() if (kernels := environment.get("GPTFAST_KERNELS")) else None,
    )
