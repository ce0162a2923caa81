"""By default a download takes what a model needs, and one form of its weights."""

import pytest

from gptfast_cli.core.hub.selection import matching, model_files

LLAMA_2 = [
    ".gitattributes",
    "LICENSE.txt",
    "README.md",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (
            " ".join(LLAMA_2),
            " ".join(name for name in LLAMA_2 if not name.startswith((".git", "LICENSE", "README", "pytorch"))),
        ),
        ("model.safetensors model.fp16.safetensors model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin tf_model.h5 flax_model.msgpack config.json", "config.json pytorch_model.bin"),
        (
            "consolidated.safetensors model-00001-of-00001.safetensors model.safetensors.index.json",
            "model-00001-of-00001.safetensors model.safetensors.index.json",
        ),
        ("consolidated.safetensors params.json tekken.json", "consolidated.safetensors params.json tekken.json"),
        ("consolidated.00.pth consolidated.01.pth params.json", "consolidated.00.pth consolidated.01.pth params.json"),
        ("gptfast.json weights-00001.safetensors", "gptfast.json weights-00001.safetensors"),
        ("stories15M.bin tokenizer.model", "stories15M.bin tokenizer.model"),
        ("onnx/config.json original/params.json config.json", "config.json"),
        ("a.jinja additional_chat_templates/b.jinja", "a.jinja additional_chat_templates/b.jinja"),
        ("README.md", ""),
    ],
)
def test_one_form_of_the_weights_and_what_stands_beside_them(names: str, taken: str) -> None:
    assert model_files(names.split()) == taken.split()


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        (("*.md", "LICENSE*"), (), ["LICENSE.txt", "README.md"]),
        (("*.bin",), ("*-00002-*",), ["pytorch_model-00001-of-00002.bin"]),
        ((), ("*.safetensors", "token*", "*config.json"), ["model.safetensors.index.json", "special_tokens_map.json"]),
        (("nothing",), (), []),
    ],
)
def test_patterns_choose(include: tuple[str, ...], exclude: tuple[str, ...], taken: list[str]) -> None:
    assert matching(LLAMA_2, include, exclude) == taken


def test_a_folder_stands_for_all_that_is_in_it() -> None:
    assert matching(["a/b.txt", "a/c/d.txt", "e.txt"], ("a/",), ()) == ["a/b.txt", "a/c/d.txt"]
