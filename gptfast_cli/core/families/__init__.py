"""Model families: how a Hugging Face config and its weight names become ours. One file each."""

from collections.abc import Mapping
from typing import Any, Protocol

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.registry import Plugs


class Family(Protocol):
    """One family of models as Hugging Face writes it."""

    architectures: tuple[str, ...]
    """Values of `architectures` in config.json that this family reads."""

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json, in its older or newer spelling.

        Raises CorruptError if a field is missing or impossible, UsageError if the model needs what we lack.
        """
        ...

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Hugging Face tensor names of each weight, by our name; several are concatenated along the first axis."""
        ...


families: Plugs[Family] = Plugs(__name__)


def family_of(hf_config: Fields) -> Family:
    """The family of a config.json. Raises UsageError if there is none, CorruptError for a damaged file."""
    architectures = hf_config.texts("architectures")
    for name in families:
        if set(architectures) & set(families[name].architectures):
            return families[name]
    known = ", ".join(architecture for name in families for architecture in families[name].architectures)
    raise UsageError(
        f"{hf_config.where}: architecture {', '.join(architectures)} is not supported.", f"gptfast reads {known}."
    )
