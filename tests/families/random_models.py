"""Tiny random models of every family, made by transformers, and the same weights in our decoder: the oracle.

A family is tested with the sizes that stand here under its name; one without any fails.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.families import Family, families
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_shapes
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import plain

# odd sizes on purpose: no dimension is a multiple of the vector width; four ranks can share them
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 56,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

# what each family has that others lack is in its first case, on which the slower tests run
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 18, "hidden_act": "swish"},
        "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "num_key_value_heads": 1},
        "llama3": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e3}},
        "yarn": {"rope_parameters": {**YARN, "rope_theta": 5e4, "beta_fast": 8.0, "beta_slow": 2.0}},
        "yarn, scales": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}},
        "yarn, no factor": {"rope_parameters": {**YARN, "factor": None, "attention_factor": 1.3}},
        "proportional": {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}},
    },
    "gemma": {
        "tied": {"head_dim": 18, "hidden_act": "gelu_pytorch_tanh"},
        "own head": {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": False},
    },
    "gemma2": {
        "softcaps": {
            "head_dim": 18,
            "sliding_window": 24,
            "query_pre_attn_scalar": 30,
            "attn_logit_softcapping": 1.5,  # small enough to be felt
            "final_logit_softcapping": 2.0,
        },
        "no softcaps": {
            "head_dim": 12,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 16,
            "tie_word_embeddings": False,
        },
    },
    "gemma3": {
        "two RoPEs": {
            "head_dim": 18,
            "sliding_window": 24,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 30,
            "rope_theta": 3e5,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "newer spelling": {
            "head_dim": 12,
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 8,
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 4e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 800.0},
            },
        },
    },
    "granite": {
        "multipliers": {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.11,
            "logits_scaling": 7.0,
            "tie_word_embeddings": True,
        },
        "biases": {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.3},
    },
    "ministral3": {
        "scaled queries": {
            "head_dim": 18,
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 32,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "rope_theta": 1e5,
                "llama_4_scaling_beta": 0.7,
            },
        },
        "window": {
            "head_dim": 12,
            "sliding_window": 24,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1},
            "tie_word_embeddings": True,
        },
    },
    "mistral": {
        "window": {"sliding_window": 24},
        "free head size, no window": {"head_dim": 18, "sliding_window": None, "tie_word_embeddings": True},
        "ministral": {
            "model_type": "ministral",
            "head_dim": 14,
            "sliding_window": 24,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
        },
    },
    "olmo2": {
        "norms after": {},
        "biases, one KV head": {"attention_bias": True, "num_key_value_heads": 1, "rope_theta": 5e5},
    },
    "olmo3": {
        "windows": {"sliding_window": 24, "rope_scaling": {**YARN, "beta_fast": 16.0}},
        "newer spelling": {
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 4e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 800.0},
            },
        },
    },
    "phi3": {
        "LongRoPE of a part": {
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 256,
            "partial_rotary_factor": 0.6,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.5, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
            },
        },
        "window": {"sliding_window": 24, "tie_word_embeddings": True},
    },
    "qwen2": {
        "biases": {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "windows": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
        "YaRN": {"rope_scaling": YARN, "rope_theta": 1e6},
    },
    "qwen3": {
        "free head size": {"head_dim": 18, "tie_word_embeddings": True},
        "windows": {
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
        },
    },
    "seed_oss": {
        "biases": {"head_dim": 18, "attention_out_bias": True, "mlp_bias": True},
        "no biases": {"head_dim": 12, "attention_bias": False, "tie_word_embeddings": True},
    },
    "smollm3": {
        "NoPE": {"no_rope_layer_interval": 2},
        "windows, biases": {
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 24,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    },
}

EVERY_CASE = [(family, case) for family, cases in CASES.items() for case in cases]
FIRST_CASES = [(family, next(iter(cases))) for family, cases in CASES.items()]


def random_model(family: str, case: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model with everything random, norms and biases too: at their usual values a missing one would hide."""
    values = {**SIZES, **CASES[family][case], **changes}
    model_type = values.pop("model_type", families[family].model_types[0])
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def saved_model(folder: Path, family: str, case: str, **changes: Any) -> PreTrainedModel:
    """A random model, also saved to a folder as transformers does it."""
    model = random_model(family, case, **changes)
    model.save_pretrained(folder)
    return model


def weights_of(family: Family, model: PreTrainedModel) -> tuple[ModelConfig, dict[str, Weight]]:
    """The shape and the very tensors of a transformers model, by our names."""
    config = family.config(model.config.to_dict())
    sources, tensors = family.sources(config), model.state_dict()
    return config, {
        name: plain(torch.cat([tensors[source] for source in sources[name]])) for name in weight_shapes(config)
    }


def over(config: ModelConfig, weights: dict[str, Weight], *, kv_dtype: torch.dtype | None = None) -> Transformer:
    """Our decoder over weights."""
    return Transformer(config, assemble(config, weights.__getitem__), Reference(), torch.float32, kv_dtype=kv_dtype)


def ours(family: str, model: PreTrainedModel, *, kv_dtype: torch.dtype | None = None) -> Transformer:
    """Our decoder over the very tensors of a transformers model."""
    return over(*weights_of(families[family], model), kv_dtype=kv_dtype)
