"""Model families: how a Hugging Face config and its weight names become ours. One file each."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.families._gguf import GgufLayout, GgufModel, gguf_model
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.registry import Plugs

__all__ = [
    "Family",
    "GgufLayout",
    "GgufModel",
    "TextModel",
    "families",
    "gguf_model",
    "read_gguf_model",
    "read_model",
]


class Family(Protocol):
    """One family of models as Hugging Face writes it."""

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that this family reads."""
    architectures: tuple[str, ...]
    """Their classes in transformers, by which a config.json without `model_type` is known."""
    defaults: Mapping[str, Any]
    """What their config class in transformers takes for keys that a file leaves out."""
    neutral: Mapping[str, tuple[Any, ...]]
    """Keys of that class which gptfast does not use, with the values at which they change nothing; null is one."""

    gguf: tuple[GgufLayout, ...]
    """How GGUF files hold its models."""

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json, in its older or newer spelling.

        Raises CorruptError if a field is missing or impossible, UsageError if the model needs what we lack.
        """
        ...

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Hugging Face tensor names of each weight, by our name; several are concatenated along the first axis."""
        ...


families: Plugs[Family] = Plugs(__name__)


@dataclass(frozen=True, slots=True)
class TextModel:
    """What a config.json describes; `wrapper`: model_type of the multimodal model whose text model this is."""

    family: Family
    config: ModelConfig
    wrapper: str | None = None

    def tensor(self, stored: str) -> str | None:
        """The text model's name of a stored tensor; None for one of another modality."""
        if self.wrapper is None:
            return stored
        inner = next((stored.removeprefix(prefix) for prefix in _TEXT_PREFIXES if stored.startswith(prefix)), None)
        if inner is None:
            return stored if stored.startswith("lm_head.") else None
        return inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"


def read_gguf_model(model: GgufModel) -> tuple[TextModel, GgufLayout]:
    """The model of GGUF metadata, and how its tensors are stored; errors as in `read_model`."""
    found = [(name, layout) for name in families for layout in families[name].gguf if layout.holds(model)]
    if not found:
        known = sorted({layout.architecture for name in families for layout in families[name].gguf})
        raise UsageError(
            f"{model.where}: models of architecture {model.architecture} are not supported.",
            f"gptfast reads {', '.join(known)}.",
        )
    name, layout = max(found, key=lambda pair: pair[1].needs is not None)
    family = families[name]
    values = layout.config(model, family.model_types[0])
    try:
        return TextModel(family, family.config(values)), layout
    except GptFastError as error:  # which names a file that is not there
        raise type(error)(f"{model.where}: its metadata, as a {error.message}", error.hint) from error


_TEXT_PREFIXES: Final = ("model.language_model.", "language_model.", "model.text_model.")


def read_model(fields: Fields) -> TextModel:
    """The model of a config.json, of which `model_type` decides; that of `text_config` in a multimodal one.

    Raises UsageError if gptfast lacks its family or something that it needs, CorruptError for a damaged file.
    """
    wrapper = fields.text("model_type", "")
    if "text_config" not in fields or wrapper in _model_types():
        family = _family_of(fields)
        return TextModel(family, family.config(fields.values))
    text = fields.section("text_config")
    family = _family_of(text)
    values = dict(text.values)
    if "tie_word_embeddings" in fields:  # the head is the wrapper's
        values["tie_word_embeddings"] = fields.flag("tie_word_embeddings")
    return TextModel(family, family.config(values), wrapper)


def _model_types() -> dict[str, str]:
    """The family of each model_type."""
    return {each: name for name in families for each in families[name].model_types}


def _family_of(fields: Fields) -> Family:
    architectures = fields.texts("architectures") if "architectures" in fields else ()
    model_type = fields.text("model_type", "")
    if not (model_type or architectures):
        raise fields.corrupt("model_type", "missing")
    name = _model_types().get(model_type)
    if name is None and not model_type:
        name = next((name for name in families if set(architectures) & set(families[name].architectures)), None)
    if name is None:
        raise _unsupported(fields, model_type or architectures[0])
    if architectures and not any(each.endswith(_GENERATES) for each in architectures):
        raise UsageError(
            f"{fields.where}: architecture {', '.join(architectures)} is not supported: it generates no text.",
            f"Architectures of this family: {', '.join(families[name].architectures)}",
        )
    return families[name]


_GENERATES: Final = ("ForCausalLM", "ForConditionalGeneration")

_LACKING: Final = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "latent attention",
    "layer_norm_eps": "LayerNorm",
    "layer_norm_epsilon": "LayerNorm",
    "norm_epsilon": "LayerNorm",
    "n_positions": "learned positions",
    "state_size": "recurrent layers",
    "mamba_d_state": "recurrent layers",
    "linear_num_value_heads": "recurrent layers",
    "conv_L_cache": "recurrent layers",
    "hidden_size_per_layer_input": "embeddings of each layer",
    "num_kv_shared_layers": "layers that share keys and values",
    "is_encoder_decoder": "an encoder",
}
"""What a key of config.json says that a model has and gptfast lacks."""


def _unsupported(fields: Fields, name: str) -> UsageError:
    known = _model_types()
    nearest = known[next(iter(difflib.get_close_matches(name.lower(), known, n=1)), "llama")]
    needs = ", ".join(dict.fromkeys(what for key, what in _LACKING.items() if fields.values.get(key)))
    lacks = f", and gptfast lacks {needs}" if needs else ""
    return UsageError(
        f"{fields.where}: models of type {name} are not supported: the nearest family is {nearest}{lacks}.",
        f"gptfast reads {', '.join(known)}.",
    )
