"""The two models: their shapes, and how they are saved as a Hugging Face folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipe.tokenizer import VOCAB_SIZE

CONTEXT = 512
BOS_ID, EOS_ID = 1, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama with tied embeddings, by the names of `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int = 32


SHAPES = {
    "tiny": Shape(192, 4, 6, 2, 640),
    "tiny-draft": Shape(64, 2, 2, 1, 256),
}


def build(shape: Shape) -> LlamaForCausalLM:
    """A fresh model with random weights, float32."""
    config = LlamaConfig(
        **asdict(shape),
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: bytes, folder: Path) -> None:
    """Config, weights in bfloat16 and tokenizer, as transformers reads them."""
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    torch.nn.Module.to(rounded, torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
