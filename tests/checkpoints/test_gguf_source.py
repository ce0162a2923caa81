"""GGUF files of every family: float32 logits of our decoder over the file are those of transformers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families.random_models import random_model
from gguf_models import add_sizes, write_model
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_shapes
from gptfast_cli.core.schemes import Block, forms, schemes

F32 = gguf.GGMLQuantizationType.F32
# of the cases of a family those that GGUF can express, and what is otherwise there; the scale of Gemma's scores is
# that of the head size in all files but 27B's
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "biases"): {},
    ("llama", "linear"): {},
    ("llama", "llama3"): {},
    ("llama", "yarn"): {},
    ("gemma", "tied"): {},
    ("gemma2", "softcaps"): {"query_pre_attn_scalar": 18},
    ("gemma3", "two RoPEs"): {"query_pre_attn_scalar": 18},
    ("gemma3", "newer spelling"): {"query_pre_attn_scalar": 12},
    ("granite", "multipliers"): {},
    ("granite", "biases"): {},
    ("ministral3", "scaled queries"): {},
    ("mistral", "window"): {},
    ("mistral", "free head size, no window"): {},
    ("olmo2", "norms after"): {},
    ("olmo2", "biases, one KV head"): {},
    ("olmo3", "windows"): {},
    ("olmo3", "newer spelling"): {},
    ("phi3", "LongRoPE of a part"): {},
    ("phi3", "window"): {},
    ("qwen2", "biases"): {},
    ("qwen2", "YaRN"): {},
    ("qwen3", "free head size"): {},
    ("seed_oss", "biases"): {},
    ("seed_oss", "no biases"): {},
    ("smollm3", "NoPE"): {"no_rope_layers": [1, 1, 1, 0]},
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def over(path: Path) -> Transformer:
    checkpoint = open_checkpoint(path)
    return Transformer(checkpoint.config, assemble(checkpoint.config, checkpoint.weight), Reference(), torch.float32)


def logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model.logits(model.forward(tokens, model.new_cache(tokens.shape[0])))


def check_logits(path: Path, theirs: PreTrainedModel, n_tokens: int = 150) -> None:
    tokens = torch.randint(3, 101, (2, n_tokens), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).logits
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits(over(path), tokens), expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_file_of_each_family_computes_what_transformers_does(tmp_path: Path, family: str, case: str) -> None:
    theirs = random_model(family, case, **CASES[family, case])
    write_model(tmp_path / "model.gguf", theirs)
    check_logits(tmp_path / "model.gguf", theirs)


TYPES = [
    *("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
]
SCALES = {"gemma3": {"query_pre_attn_scalar": 64}}
ROUND = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 128}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_file_of_each_type_computes_what_its_dequantized_weights_do(tmp_path: Path, family: str, name: str) -> None:
    case = {"llama": "llama3", "gemma3": "two RoPEs"}[family]
    theirs = random_model(
        family, case, **ROUND, head_dim=64, **({"query_pre_attn_scalar": 64} if family == "gemma3" else {})
    )
    kind = gguf.GGMLQuantizationType[name]
    write_model(tmp_path / "model.gguf", theirs, lambda _name, _weight: kind)
    check_logits(tmp_path / "model.gguf", theirs, 40)


def tiny(**changes: Any) -> PreTrainedModel:
    return random_model("llama", "llama3", **ROUND, head_dim=64, **changes)


def type_of(name: str, _weight: Tensor) -> gguf.GGMLQuantizationType:
    """A mixture as of Q4_K_M: values and the head are finer."""
    return gguf.GGMLQuantizationType["Q6_K" if "attn_v" in name or "token_embd" in name else "Q4_K"]


def test_a_mixture_of_types_is_read(tmp_path: Path) -> None:
    theirs = tiny()
    write_model(tmp_path / "model.gguf", theirs, type_of)
    check_logits(tmp_path / "model.gguf", theirs, 40)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert (checkpoint.scheme, checkpoint.dtype) == ("Q4_K", torch.bfloat16)
    assert checkpoint.n_params == sum(parameter.numel() for parameter in theirs.parameters())


def test_all_files_of_a_split_model_are_read_whichever_is_named(tmp_path: Path) -> None:
    theirs = tiny()
    write_model(tmp_path / "model.gguf", theirs, type_of, shards=5)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 3
    check_logits(files[1], theirs, 40)
    assert open_checkpoint(tmp_path).files == tuple(files)
    files[2].unlink()
    with pytest.raises(CorruptError, match=f"{files[2].name}: missing of {len(files)} files"):
        open_checkpoint(files[0])


def test_rows_and_columns_of_a_rank_are_those_of_the_whole(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", tiny(), type_of)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    qkv = checkpoint.weight("layers.0.qkv")
    rows = (slice(64, 128), slice(256, 320), slice(384, 448))
    dense = schemes[qkv.scheme].dense(qkv, torch.float32)
    part = checkpoint.weight("layers.0.qkv", Block(rows=rows))
    assert torch.equal(schemes[part.scheme].dense(part, torch.float32), torch.cat([dense[each] for each in rows]))
    down = checkpoint.weight("layers.0.down")
    columns = checkpoint.weight("layers.0.down", Block(columns=slice(256, 512)))
    assert torch.equal(
        schemes[columns.scheme].dense(columns, torch.float32),
        schemes[down.scheme].dense(down, torch.float32)[:, 256:],
    )


def test_an_outline_is_that_of_the_weight(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", tiny(), type_of)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for name in weight_shapes(checkpoint.config):
        weight, outline = checkpoint.weight(name), checkpoint.outline(name)
        assert (weight.scheme, weight.shape, forms(weight)) == (outline.scheme, outline.shape, forms(outline))


def rewritten(path: Path, change: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Path:
    """A file of metadata and an embedding, with something else in it."""
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, tiny().config)
    writer.add_tensor("token_embd.weight", np.zeros((128, 256), np.float32))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


REFUSED: dict[str, tuple[Callable[[gguf.GGUFWriter], None], str]] = {
    "experts": (lambda writer: writer.add_expert_count(8), r"llama\.expert_count: 8 is not supported"),
    "a key of later times": (lambda writer: writer.add_uint32("llama.attention.new", 3), r"attention\.new: 3 is not"),
    "layers that differ": (lambda writer: writer.add_array("llama.attention.sinks", [1, 2]), "a list, as of layers"),
    "latent attention": (
        lambda writer: writer.add_uint32("llama.attention.value_length_mla", 3),
        "not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_computation_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, why = REFUSED[name]
    with pytest.raises((UsageError, CorruptError), match=why):
        open_checkpoint(rewritten(tmp_path / "model.gguf", change))


def test_a_tensor_that_no_weight_needs_is_refused_by_name(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32))

    write_model(tmp_path / "model.gguf", tiny(), vocabulary=add)
    with pytest.raises(
        UsageError, match=r"model\.gguf: blk\.0\.attn_sinks\.weight: a tensor that gptfast does not know"
    ):
        open_checkpoint(tmp_path / "model.gguf")


def test_an_architecture_that_gptfast_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.gguf: models of architecture mamba are not supported") as refused:
        open_checkpoint(rewritten(tmp_path / "model.gguf", lambda _writer: None, "mamba"))
    assert "qwen3" in refused.value.hint


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path: Path) -> None:
    theirs = tiny()
    kind = gguf.GGMLQuantizationType.TQ2_0
    write_model(tmp_path / "model.gguf", theirs, lambda name, _weight: kind if "ffn_down" in name else F32)
    with pytest.raises(UsageError, match=r"blk\.0\.ffn_down\.weight: type TQ2_0 is not supported") as refused:
        open_checkpoint(tmp_path / "model.gguf")
    assert "Q4_K" in refused.value.hint


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path) -> None:
    for name in ("big-Q8_0.gguf", "big-Q4_K_M.gguf", "mmproj-big-f16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(1000 if "Q8" in name else 500))
    with pytest.raises(UsageError, match=r"2 models in GGUF files: Q4_K_M \(504 bytes\), Q8_0 \(1\.00 kB\)") as several:
        open_checkpoint(tmp_path)
    assert several.value.hint == f"Name one: {tmp_path}:Q4_K_M"
