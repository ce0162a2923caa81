"""Where things are kept, as the environment says; the twins of single options are read where those are declared."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.errors import UsageError


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


def settings_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the settings file is looked for: ~/.config/gptfast/config.toml, XDG_CONFIG_HOME respected."""
    folder = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return folder / "gptfast" / "config.toml"


def check_hub_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for a variable of Hugging Face's that should be a number and is none.

    To be called before huggingface_hub and datasets are loaded, which read them then and end in a ValueError.
    """
    size = environment.get("HF_DATASETS_IN_MEMORY_MAX_SIZE")
    if size and not (size.isascii() and size.isdecimal()):
        raise UsageError(
            f"The environment variable HF_DATASETS_IN_MEMORY_MAX_SIZE must be a number of bytes, not {size!r}.",
            "unset HF_DATASETS_IN_MEMORY_MAX_SIZE",
        )
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        value = environment.get(name)
        if value and not (value.isascii() and value.isdecimal() and int(value[:9]) > 0 and len(value) < 9):
            raise UsageError(
                f"The environment variable {name} must be a whole number of seconds above 0, not {value!r}.",
                f"unset {name}",
            )


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment: GPTFAST_HOME, GPTFAST_KERNELS, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hf_home = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    return Settings(
        home=Path(environment.get("GPTFAST_HOME") or cache / "gptfast").expanduser(),
        hf_cache=Path(environment.get("HF_HUB_CACHE") or hf_home / "hub").expanduser(),
        kernels=Path(kernels).expanduser() if (kernels := environment.get("GPTFAST_KERNELS")) else None,
    )
