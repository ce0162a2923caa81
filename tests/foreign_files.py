"""Models in the files of other programs, written by a few lines that know nothing of how ours are read."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
}
BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """Query or key rows with the two of each RoPE pair side by side, one row after the other."""
    mixed = []
    for head in rows.chunk(n_heads):
        for first, second in zip(head[: len(head) // 2], head[len(head) // 2 :], strict=True):
            mixed += [first, second]
    return torch.stack(mixed)


def meta_state(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """A model's tensors as Meta has them."""
    state = {}
    for name, tensor in model.state_dict().items():
        meta = name
        for theirs, of_meta in NAMES.items():
            meta = meta.replace(theirs, of_meta)
        if meta.endswith("wq.weight"):
            state[meta] = interleaved(tensor, model.config.num_attention_heads)
        elif meta.endswith("wk.weight"):
            state[meta] = interleaved(tensor, model.config.num_key_value_heads)
        else:
            state[meta] = tensor.clone()
    return state


def write_meta(
    folder: Path, model: LlamaForCausalLM, n_files: int = 1, *, llama_3: bool = False, **changes: Any
) -> Path:
    """Meta's files, cut as for a tensor-parallel run of so many processes."""
    folder.mkdir()
    state = meta_state(model) | {"rope.freqs": torch.ones(3)}
    for number in range(n_files):
        part = {}
        for name, tensor in state.items():
            by_columns = name.endswith(BY_COLUMNS) or (name == "tok_embeddings.weight" and not llama_3)
            is_cut = tensor.dim() == 2
            part[name] = tensor.chunk(n_files, dim=1 if by_columns else 0)[number].clone() if is_cut else tensor
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    params = {
        "dim": model.config.hidden_size,
        "multiple_of": 256,
        "n_heads": model.config.num_attention_heads,
        "n_kv_heads": model.config.num_key_value_heads,
        "n_layers": model.config.num_hidden_layers,
        "norm_eps": model.config.rms_norm_eps,
        "rope_theta": model.config.rope_parameters["rope_theta"],
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(params | changes))
    return folder


def write_gpt_fast(folder: Path, model: LlamaForCausalLM, *, fused: bool = True) -> Path:
    """gpt-fast's file beside config.json."""
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    state = meta_state(model)
    for layer in range(model.config.num_hidden_layers) if fused else ():
        rows = [state.pop(f"layers.{layer}.attention.{name}.weight") for name in ("wq", "wk", "wv")]
        state[f"layers.{layer}.attention.wqkv.weight"] = torch.cat(rows)
    torch.save(state, folder / "model.pth")
    return folder


def write_pytorch_model(folder: Path, model: LlamaForCausalLM, n_files: int = 1) -> Path:
    """transformers' folder of before safetensors."""
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if n_files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for number in range(n_files):
        file = f"pytorch_model-{number + 1:05}-of-{n_files:05}.bin"
        names = list(state)[number::n_files]
        torch.save({name: state[name].clone() for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_llama2_c(path: Path, model: LlamaForCausalLM, version: int) -> Path:
    """llama2.c's file, as its export.py writes versions 0 and 1."""
    config, state = model.config, meta_state(model)
    tied = config.tie_word_embeddings
    sizes = [
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
    ]

    def of_layers(*names: str) -> list[Tensor]:
        return [state[f"layers.{n}.{name}.weight"] for name in names for n in range(config.num_hidden_layers)]

    attention = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
    ffn = ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    if version == 0:
        sizes[5] *= 1 if tied else -1
        header = struct.pack("<7i", *sizes)
        rotation = torch.rand(2, config.max_position_embeddings, config.hidden_size // config.num_attention_heads // 2)
        tensors = [
            state["tok_embeddings.weight"],
            *of_layers("attention_norm", *attention, "ffn_norm", *ffn),
            state["norm.weight"],
            rotation,
        ]
    else:
        header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied).ljust(256, b"\0")
        tensors = [
            *of_layers("attention_norm", "ffn_norm"),
            state["norm.weight"],
            state["tok_embeddings.weight"],
            *of_layers(*attention, *ffn),
        ]
    tensors += [] if tied else [state["output.weight"]]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header + b"".join(tensor.float().numpy().tobytes() for tensor in tensors))
    return path


def write_tokenizer_bin(path: Path, model: sentencepiece.SentencePieceProcessor) -> Path:
    """llama2.c's tokenizer.bin, as its tokenizer.py exports a SentencePiece model."""
    entries = []
    for token in range(model.vocab_size()):
        piece = model.id_to_piece(token)
        if token in (model.bos_id(), model.eos_id()):
            piece = f"\n{piece}\n"
        entries.append((piece.replace("▁", " ").encode(), model.get_score(token)))
    content = struct.pack("I", max(len(piece) for piece, _ in entries))
    content += b"".join(struct.pack("fI", score, len(piece)) + piece for piece, score in entries)
    path.write_bytes(content)
    return path


class Malice:
    """What runs a command where a pickle of it is opened trustingly."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


def logits_of(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """Our logits in float32."""
    model = Transformer(checkpoint.config, assemble(checkpoint.config, checkpoint.weight), Reference(), torch.float32)
    with torch.inference_mode():
        return model.logits(model.forward(tokens, model.new_cache(tokens.shape[0])))
