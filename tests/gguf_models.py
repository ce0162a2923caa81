"""Models of transformers as GGUF files, by the `gguf` package and llama.cpp's rules for names and metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

ARCHITECTURES = {"mistral": "llama", "ministral3": "mistral3", "gemma3_text": "gemma3", "olmo3": "olmo2"}
"""That of a model_type, where it has another name."""
PAIRED = {"llama", "mistral", "ministral3", "granite", "smollm3"}
"""Model types whose queries and keys have their RoPE pairs interleaved."""
OFFSET_NORMS = {"gemma", "gemma2", "gemma3_text"}

Quantize = Callable[[str, Tensor], gguf.GGMLQuantizationType]
"""The type of a matrix by its GGUF name."""


def write_model(
    path: Path,
    model: PreTrainedModel,
    type_of: Quantize = lambda _name, _weight: gguf.GGMLQuantizationType.F32,
    *,
    vocabulary: Callable[[gguf.GGUFWriter], None] = lambda _writer: None,
    shards: int = 0,
) -> None:
    """Write a model, whose weights become what their quantized rows stand for.

    vocabulary: adds a tokenizer's keys
    shards:     tensors in each file of a split model; 0 is one file
    """
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=shards)
    add_sizes(writer, config)
    vocabulary(writer)
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, weight in parameters.items():
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            assert name is not None, key
            _add(writer, name, key, weight, model, type_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(
    writer: gguf.GGUFWriter, name: str, key: str, weight: Tensor, model: PreTrainedModel, type_of: Quantize
) -> None:
    config = model.config
    n_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
    is_paired = config.model_type in PAIRED and n_heads is not None
    stored = interleaved(weight, n_heads) if is_paired else weight
    if weight.ndim == 1:
        offset = 1 if config.model_type in OFFSET_NORMS and "norm" in key else 0
        writer.add_tensor(name, (stored.float() + offset).numpy())
        return
    kind = type_of(name, weight)
    raw = quantized(stored, kind)
    writer.add_tensor(name, raw, raw_dtype=kind)
    dense = torch.from_numpy(gguf.quants.dequantize(raw, kind)).view(weight.shape)
    weight.copy_(separated(dense, n_heads) if is_paired else dense)


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """Rows of heads with RoPE pairs half a head apart, with these next to one another: `permute` of llama.cpp."""
    return rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def separated(rows: Tensor, n_heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    return rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


K_TYPES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    **dict.fromkeys(("IQ4_XS", "IQ4_NL"), (0,)),
}
"""Types that the package reads and does not write, and where the float16 factors of their blocks are."""
LARGEST = {"Q2_K": 45, "Q3_K": 128, "Q4_K": 900, "Q5_K": 1900, "Q6_K": 4000, "IQ4_XS": 4000, "IQ4_NL": 127}
"""About what the integers of a block multiply to."""


def quantized(rows: Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows in a type; of those that the package does not write, random blocks of about the same size instead."""
    if kind.name not in K_TYPES:
        return gguf.quants.quantize(rows.float().contiguous().numpy(), kind)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (len(rows), rows.shape[1] // block_size, block_bytes)
    raw = np.random.default_rng(len(rows)).integers(0, 256, shape, dtype=np.uint8)
    factor = np.array([3 * float(rows.std()) / LARGEST[kind.name]], np.float16).view(np.uint8)
    for first in K_TYPES[kind.name]:
        raw[..., first : first + 2] = factor
    return raw.reshape(len(rows), -1)


def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    """What llama.cpp's converter writes of a config."""
    values = config.to_dict()
    size = values.get("head_dim") or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type != "phi3":
        writer.add_key_length(size)
        writer.add_value_length(size)
    add_rope(writer, config, size)
    for key, add in {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
    }.items():
        if values.get(key) is not None:
            add(values[key])
    if config.model_type in ("gemma2", "gemma3_text", "olmo3", "phi3", "mistral") and "sliding_window" in values:
        writer.add_sliding_window(values["sliding_window"] or 0)
    if config.model_type in ("gemma2", "gemma3_text", "olmo3"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in values["layer_types"]])


def add_rope(writer: gguf.GGUFWriter, config: Any, size: int) -> None:
    parameters = config.rope_parameters
    rope = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    n_rotated = int(size * rope.get("partial_rotary_factor", 1.0))
    if config.model_type != "gemma3_text":
        writer.add_rope_dimension_count(n_rotated)
    if "sliding_attention" in parameters:
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])
    match rope["rope_type"]:
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            _add_yarn(writer, config, rope)
        case "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(rope, size).numpy())
        case "longrope":
            original = rope["original_max_position_embeddings"]
            writer.add_rope_scaling_orig_ctx_len(original)
            growth = np.log(config.max_position_embeddings / original) / np.log(original)
            writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + growth)))
            for kind in ("long", "short"):
                writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def _add_yarn(writer: gguf.GGUFWriter, config: Any, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for key, add in {
        "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
        "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
        "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
    }.items():
        if rope.get(key) is not None:
            add(rope[key])
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def llama3_factors(rope: dict[str, Any], size: int) -> Tensor:
    """What each frequency is divided by: `generate_extra_tensors` of llama.cpp's converter."""
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    wavelengths = 2 * torch.pi / frequencies
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    return torch.where(
        wavelengths < original / high, 1.0, torch.where(wavelengths > original / low, torch.tensor(factor), blended)
    )
