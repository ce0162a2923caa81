"""A saved model of transformers as a BF16 GGUF file: Llama, Qwen3 or Gemma 3.

It has no tokenizer, which llama.cpp's own converter insists on: random weights are measured with random token ids.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from torch import Tensor


def write_gguf(model: Path, gguf_file: Path) -> None:
    """Write the weights and the sizes of a folder to a file."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    family = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(gguf_file, family)
    _add_sizes(writer, config)
    (architecture,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    with safe_open(model / "model.safetensors", "pt") as weights:
        for key in weights.keys():  # noqa: SIM118  # it is no mapping
            name = names.get_name(key, try_suffixes=(".weight",))
            assert name is not None, key
            _add(writer, name, _as_stored(key, weights.get_tensor(key), family, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)  # in five of six layers, which llama.cpp knows


def _as_stored(key: str, weight: Tensor, family: str, config: Any) -> Tensor:
    """A weight as GGUF has it: Llama's pairs of RoPE are adjacent rows there, and Gemma's norms have their 1."""
    if family == "llama" and ("q_proj" in key or "k_proj" in key):
        rows, columns = weight.shape
        return weight.view(-1, 2, config.head_dim // 2, columns).transpose(1, 2).reshape(rows, columns)
    return weight.float() + 1 if family == "gemma3" and weight.ndim == 1 else weight


def _add(writer: gguf.GGUFWriter, name: str, weight: Tensor) -> None:
    """Norms are in float32, which llama.cpp wants, and matrices in bfloat16, of which NumPy knows the bytes alone."""
    if weight.ndim == 1:
        writer.add_tensor(name, weight.float().numpy())
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, weight.contiguous().view(torch.uint8).numpy(), raw_dtype=kind)
