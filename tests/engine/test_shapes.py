"""A shape is the one that was meant, to the last parameter, or a refusal that says what can be meant."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from gptfast_cli.core.config import LinearScaling, QKNorm, RopeConfig
from gptfast_cli.core.engine.shapes import KNOWN_SHAPES, read_shape
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_shapes

DRAFT = "layers=4,dim=768,heads=12,kv_heads=12,ffn=3072,vocab=32000"
LARGEST_EVEN = str(2**31 - 2)
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def n_params(text: str) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(read_shape(text).config).values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codellama-13b", 13_016_028_160),
        ("codellama-7b", 6_738_546_688),
        ("gemma-2-27b", 27_227_128_320),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", 9_241_705_984),
        # of Gemma 3 from 4B on: the published count less 416,866,032 of the vision tower and 1,152 (dim + 1) beside it
        ("gemma-3-12b", 11_766_034_176),
        ("gemma-3-1b", 999_885_952),
        ("gemma-3-27b", 27_009_346_304),
        ("gemma-3-4b", 3_880_263_168),
        ("granite-3.3-8b", 8_170_864_640),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.3-70b", 70_553_706_496),
        ("llama-7b", 6_738_415_616),
        ("mistral-7b", 7_248_023_552),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-nemo-12b", 12_247_782_400),
        ("olmo-2-7b", 7_298_617_344),
        ("olmo-3-7b", 7_298_011_136),
        ("openllama-3b", 3_426_473_600),
        ("phi-3-mini-4k", 3_821_079_552),
        ("phi-4", 14_659_507_200),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("seed-oss-36b", 36_151_104_512),
        ("smollm3-3b", 3_075_098_624),
        ("tinyllama-1.1b", 1_100_048_384),
        (DRAFT, 2 * 32000 * 768 + 768 + 4 * (2 * 768 + 4 * 768 * 768 + 3 * 768 * 3072)),
    ],
)
def test_a_shape_has_as_many_parameters_as_the_model_that_is_called_so(name: str, expected: int) -> None:
    assert n_params(name) == expected


def test_every_known_shape_is_counted_above() -> None:
    marks = test_a_shape_has_as_many_parameters_as_the_model_that_is_called_so.pytestmark
    assert {name for name, _ in marks[0].args[1]} - {DRAFT} == set(KNOWN_SHAPES)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-2-7b", {"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096}),
        (
            "llama-3.1-8b",
            {
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "rope_parameters": {**LLAMA_3_ROPE, "factor": 8.0},
            },
        ),
        (
            "llama-3.2-1b",
            {
                "hidden_size": 2048,
                "num_hidden_layers": 16,
                "head_dim": 64,
                "intermediate_size": 8192,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
                "rope_parameters": {**LLAMA_3_ROPE, "factor": 32.0},
            },
        ),
        (
            "tinyllama-1.1b",
            {
                "hidden_size": 2048,
                "num_hidden_layers": 22,
                "intermediate_size": 5632,
                "num_key_value_heads": 4,
                "max_position_embeddings": 2048,
            },
        ),
    ],
)
def test_a_known_shape_is_what_its_published_config_says(name: str, published: dict[str, Any]) -> None:
    config = LlamaConfig(**{"num_attention_heads": 32, "rms_norm_eps": 1e-5, **published})
    assert read_shape(name).config == families["llama"].config(config.to_dict())


def test_a_config_file_is_read_as_its_family_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = LlamaConfig(
        hidden_size=64,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        architectures=["LlamaForCausalLM"],
    )
    path.write_text(json.dumps(config.to_dict()))
    shape = read_shape(str(path))
    assert shape.name == str(path)
    assert (shape.config.dim, shape.config.layers[0].attention.rope) == (64, RopeConfig(10000.0, LinearScaling(2.0)))


def test_sizes_that_are_left_out_follow_from_the_others() -> None:
    config = read_shape("layers=2, dim=96, heads=6, ffn=200, vocab=50").config
    attention = config.layers[0].attention
    assert (attention.n_kv_heads, attention.head_dim, config.tied_embeddings) == (6, 16, False)
    assert config.max_context >= 4096


def test_sizes_that_are_given_are_taken() -> None:
    config = read_shape(
        "layers=2,dim=90,heads=4,kv_heads=2,head_dim=20,ffn=7,vocab=50,context=9,theta=500,tied=yes"
    ).config
    attention, feed_forward = config.layers[0].attention, config.layers[0].feed_forward
    assert (config.n_layers, config.dim, config.vocab_size, config.max_context) == (2, 90, 50, 9)
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (4, 2, 20)
    assert (feed_forward.dim, config.tied_embeddings) == (7, True)
    assert attention.rope == RopeConfig(500.0)


def test_sizes_may_give_layers_a_window_and_a_qk_norm() -> None:
    windowed = read_shape("layers=7,dim=64,heads=2,ffn=96,vocab=50,window=1024,full_every=3,qk_norm=yes").config
    assert [layer.attention.window for layer in windowed.layers] == [1024, 1024, None, 1024, 1024, None, 1024]
    assert {layer.attention.qk_norm for layer in windowed.layers} == {QKNorm.HEAD}
    everywhere = read_shape("layers=2,dim=64,heads=2,ffn=96,vocab=50,window=8").config
    assert [layer.attention.window for layer in everywhere.layers] == [8, 8]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("lama-2-7b", "no shape called 'lama-2-7b'", "Did you mean llama-2-7b"),
        ("", "no shape called ''", "layers=4"),
        ("layers=2000000000,dim=768,heads=12,ffn=3072,vocab=32000", "layers must be at most 10,000", "layers=4"),
        ("layers=4,dim=768,heads=12,fnn=3072,vocab=32000", "no 'fnn'", "Did you mean ffn?"),
        (f"{DRAFT},layers=5", "layers is given twice", "layers=4"),
        ("layers=4,dim=768,ffn=3072", "needs heads, vocab too", "layers=4"),
        (f"{DRAFT},context=0", "context must be a whole number above 0, not '0'", ""),
        (DRAFT.replace("ffn=3072", "ffn=many"), "ffn must be a whole number above 0, not 'many'", ""),
        (DRAFT.replace("ffn=3072", "ffn=²"), "ffn must be", ""),
        (DRAFT.replace("kv_heads=12", "kv_heads=5"), "12 query heads cannot share kv_heads=5", ""),
        (DRAFT.replace("dim=768", "dim=770"), "dim=770 cannot be cut into heads=12", ""),
        (f"{DRAFT},head_dim=7", "a head of 7 elements", ""),
        (f"{DRAFT},full_every=2", "it needs window too", "layers=4"),
        (f"{DRAFT},window=0", "window must be a whole number above 0", "layers=4"),
        (DRAFT.replace("dim=768", "dim=0"), "dim must be a whole number above 0, not '0'", ""),
        (DRAFT.replace("dim=768", "dim=9223372036854775808"), "dim must be a whole number above 0", ""),
        (DRAFT.replace("dim=768", "dim=nan"), "dim must be a whole number above 0, not 'nan'", ""),
        (f"{DRAFT},theta=inf", "theta must be a whole number above 0, not 'inf'", ""),
        (f"{DRAFT},context=1e999", "context must be a whole number above 0, not '1e999'", ""),
        (DRAFT.replace("ffn=3072", f"ffn={'9' * 5000}"), "ffn must be a whole number above 0", ""),
        (f"{DRAFT.replace('12', LARGEST_EVEN)},head_dim={LARGEST_EVEN}", "rows, and at most", "layers=4"),
        (DRAFT.replace("ffn=3072", f"ffn={LARGEST_EVEN}"), "rows, and at most", "layers=4"),
        (f"{DRAFT.replace('dim=768', 'dim=12000000').replace('32000', LARGEST_EVEN)}", "elements, and at most", ""),
        (f"{DRAFT},tied=maybe", "tied must be yes or no, not 'maybe'", ""),
    ],
)
def test_what_means_no_shape_is_refused_with_what_does(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_shape(text)
    assert message in refused.value.message
    assert hint in refused.value.hint


def test_a_config_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such file"):
        read_shape(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"config\.json: model_type: missing"):
        read_shape(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_attention_heads": 2**31 - 1, "head_dim": 2**31 - 2},
        {"hidden_size": 2**31 - 2, "vocab_size": 2**31 - 1, "head_dim": 64},
        {"intermediate_size": 2**31 - 1},
    ],
)
def test_a_config_file_whose_sizes_no_machine_holds_is_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    named = {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, **config, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(named))
    with pytest.raises(
        CorruptError, match=r"config\.json: hidden_size: with the other sizes, .* at most .* are possible"
    ):
        read_shape(str(tmp_path / "config.json"))


@pytest.mark.parametrize("size", ["0", "NaN", "Infinity", "1e999", "9223372036854775808", "9" * 5000])
def test_a_config_file_with_a_size_that_is_none_is_refused(tmp_path: Path, size: str) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "num_attention_heads": 2, "num_hidden_layers": 1,'
        f' "intermediate_size": 9223372036854775807, "vocab_size": 64, "hidden_size": {size}}}'
    )
    with pytest.raises(CorruptError, match=r"config\.json: "):
        read_shape(str(tmp_path / "config.json"))
