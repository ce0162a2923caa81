"""The same random weights for both sides: a Hugging Face folder, GGUF files of it, and our quantized checkpoints."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import torch
from llama_cpp_peer import LlamaCpp, run_logged

from gguf_models import write_model
from gptfast_cli.core.checkpoints.staging import staged_folder


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model is stored: the peer's name for it, and what makes ours of the plain one.

    peer_bits: of an element of the peer's embedding, scales included
    """

    peer: str
    peer_bits: float
    ours: str
    quantize: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """One model as both sides read it."""

    gguf: Path
    ours: Path


def _sizes(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int) -> dict[str, int]:
    return {
        "hidden_size": dim,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": ffn_dim,
    }


_LLAMA: Final = {"model_type": "llama", "vocab_size": 32_000, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
_QWEN3: Final = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
_GEMMA3: Final = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "head_dim": 256,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}
SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "b": _LLAMA | _sizes(768, 12, 12, 12, 2048),  # 134 M
    "a": _LLAMA | _sizes(2048, 22, 32, 4, 5632),  # as TinyLlama-1.1B
    "qwen3-0.6b": _QWEN3 | _sizes(1024, 28, 16, 8, 3072),
    "gemma-3-1b": _GEMMA3 | _sizes(1152, 26, 4, 1, 6912),
}
"""Of each model what its config.json says, where it is not what transformers takes by default."""

PRECISIONS: Final[Mapping[str, Precision]] = {
    "bf16": Precision("BF16", 16, "bfloat16", ()),
    "int8": Precision("Q8_0", 8.5, "int8", ("--mode", "int8")),
    "int4": Precision("Q4_0", 4.5, "int4 g32", ("--mode", "int4", "--groupsize", "32")),
}


def prepare(work: Path, name: str, peer: LlamaCpp) -> dict[str, Models]:
    """The models of a shape, by precision; what is in the folder already is taken as it is."""
    folder = work / name
    plain = folder / "hf"
    if not plain.exists():
        with staged_folder(plain, "peer", replace=True) as staging:
            write_checkpoint(SHAPES[name], staging)
    whole = folder / "BF16.gguf"
    if not whole.exists():
        partial = whole.with_suffix(".partial")
        write_gguf(plain, partial)
        partial.replace(whole)
    models = {}
    for key, precision in PRECISIONS.items():
        model = Models(folder / f"{precision.peer}.gguf", folder / key if precision.quantize else plain)
        if not model.gguf.exists():
            peer.quantize(whole, model.gguf, precision.peer)
        if not model.ours.exists():
            quantize = [sys.executable, "-m", "gptfast_cli", "quantize", str(plain), *precision.quantize]
            run_logged([*quantize, "--no-fidelity", "--quiet", "--out", str(model.ours)])
        models[key] = model
    return models


def write_gguf(model: Path, gguf_file: Path) -> None:
    """Write a saved model in bfloat16, without a tokenizer: random weights are measured with random token ids."""
    from transformers import AutoModelForCausalLM

    write_model(
        gguf_file,
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        lambda *_: gguf.GGMLQuantizationType.BF16,
        vocabulary=lambda writer: writer.add_tokenizer_model("none"),
    )


def write_checkpoint(shape: Mapping[str, Any], folder: Path) -> None:
    """Random bfloat16 weights of a shape, without a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # a norm: all alike, one in another's place would go unseen
                weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(folder)


def unread_elements(shape: Mapping[str, Any]) -> int:
    """Elements of the embedding that no step reads: all, unless they are the head's too."""
    return 0 if shape["tie_word_embeddings"] else shape["vocab_size"] * shape["hidden_size"]
