"""The same random weights for both sides: a Hugging Face folder, GGUF files of it, and our quantized checkpoints."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from llama_cpp_peer import LlamaCpp, run_logged

from gptfast_cli.core.checkpoints.staging import staged_folder


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama with a head of its own."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int = 32000  # of the tokenizer
    max_context: int = 2048

    @property
    def embedding_size(self) -> int:
        """Elements of the embedding."""
        return self.vocab_size * self.dim


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


SHAPES: Final[Mapping[str, Shape]] = {
    "b": Shape(768, 12, 12, 12, 2048),  # 134 M
    "a": Shape(2048, 22, 32, 4, 5632),  # as TinyLlama-1.1B
}
PRECISIONS: Final[Mapping[str, Precision]] = {
    "bf16": Precision("BF16", 16, "bfloat16", ()),
    "int8": Precision("Q8_0", 8.5, "int8", ("--mode", "int8")),
    "int4": Precision("Q4_0", 4.5, "int4 g32", ("--mode", "int4", "--groupsize", "32")),
}
_TOKENIZER = "tokenizer.model.v1"
_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
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
        peer.convert(plain, whole)
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


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Random bfloat16 weights, and a real SentencePiece tokenizer: the converter asks for one."""
    import mistral_common
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.ffn_dim,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / _TOKENIZER, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG), encoding="utf-8")
