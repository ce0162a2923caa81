"""Models from the command line: converted, generated from, listed, completed and removed."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cli.command_line import CommandLine


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=67,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_a_converted_model_is_current_and_generates(gptfast: CommandLine, hf_folder: Path) -> None:
    converted = json.loads(gptfast.run("convert", str(hf_folder), "--json").stdout)
    assert converted.keys() == {"schema", "path", "name", "bytes", "was_there"}
    assert converted["schema"] == "gptfast.convert/1" and Path(converted["path"]).is_dir()

    outcome = gptfast.run("generate", "--prompt-ids", "1,2,3", "--max-new-tokens", "5", "--ignore-eos", "--json")
    generation = json.loads(outcome.stdout)
    assert generation["model"] == converted["name"]
    (sample,) = generation["samples"]
    assert sample["prompt_tokens"] == 3 and len(sample["token_ids"]) == 5 and sample["finish_reason"] == "length"
    assert generation["metrics"].keys() >= {
        *("prefill_tok_s", "ttft_s", "decode_tok_s", "decode_gbps", "mbu"),
        *("peak_memory_bytes", "load_s", "compile_s"),
    }


def test_the_store_is_listed_completed_and_emptied(gptfast: CommandLine, hf_folder: Path) -> None:
    path = Path(gptfast.run("convert", str(hf_folder), "--quiet").stdout.decode().strip())
    listed = gptfast.run("--list")
    heading, *rows = listed.stdout.decode().splitlines()
    assert heading.split() == ["NAME", "WHERE", "SCHEME", "HEAD", "SIZE", "PARAMETERS", "PATH"]
    assert [row.split()[0] for row in rows] == ["tiny", "tiny-draft", "*"]
    assert rows[-1].split()[:5] == ["*", "small", "store", "plain", "plain"] and rows[-1].endswith(str(path))
    assert listed.stderr.startswith(b"3 models, ")
    document = json.loads(gptfast.run("--list", "--json").stdout)
    assert document["schema"] == "gptfast.list/1" and [each["current"] for each in document["models"]] == [0, 0, 1]

    completing = gptfast.with_environment(_GPTFAST_COMPLETE="gptfast --remove sm")
    assert completing.run().stdout == b"none\nsmall\t\n"

    unasked = gptfast.run("--remove", "small")
    assert unasked.returncode == 2 and path.exists(), "without a terminal nothing is deleted unless --yes says so"
    assert gptfast.run("--remove", "small", "--yes").returncode == 0
    assert not path.exists()
    assert gptfast.run("--remove", "small", "--yes").returncode == 3
    assert b"small" not in gptfast.run("--list").stdout


def test_the_environment_names_a_model_before_the_one_last_made_ready(gptfast: CommandLine, hf_folder: Path) -> None:
    gptfast.run("convert", str(hf_folder), "--quiet")
    named = gptfast.with_environment(GPTFAST_MODEL=str(hf_folder))
    arguments = ("generate", "--prompt-ids", "1", "--max-new-tokens", "1")
    assert f"Model: {hf_folder} (a folder)".encode() in named.run(*arguments).stderr
    assert b"Model: small (in the store)" in named.run(*arguments, "-m", "small").stderr


def test_a_model_that_is_nowhere_ends_with_3(gptfast: CommandLine) -> None:
    outcome = gptfast.run("generate", "x", "-m", "no/such")
    assert outcome.returncode == 3
    assert outcome.stderr.startswith(b"error: ") and len(outcome.stderr.splitlines()) <= 5


def test_a_pickle_ends_with_6_and_says_how_to_allow_it(gptfast: CommandLine, hf_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(hf_folder)
    torch.save(model.state_dict(), hf_folder / "pytorch_model.bin")
    (hf_folder / "model.safetensors").unlink()
    for command in (("convert", str(hf_folder)), ("generate", "--model", str(hf_folder), "--prompt-ids", "1")):
        refused = gptfast.run(*command)
        assert refused.returncode == 6
        assert f"gptfast convert {hf_folder} --allow-pickle" in refused.stderr.decode()
    assert gptfast.run("convert", str(hf_folder), "--allow-pickle", "--verify").returncode == 0


def test_weights_are_verified_where_that_is_asked(gptfast: CommandLine, hf_folder: Path) -> None:
    path = Path(gptfast.run("convert", str(hf_folder), "--quiet").stdout.decode().strip())
    shard = path / "weights-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    generate = ("generate", "--prompt-ids", "1,2", "--max-new-tokens", "2")
    assert gptfast.run(*generate).returncode == 0
    refused = gptfast.run(*generate, "--verify-weights")
    assert refused.returncode == 6
    assert "weights-00001.safetensors: head.weight" in refused.stderr.decode()
    assert f"gptfast convert {hf_folder} --out {path} --force" in refused.stderr.decode()


def test_a_model_is_shown_and_made_current(gptfast: CommandLine) -> None:
    shown = json.loads(gptfast.run("--show", "tiny-draft", "--json").stdout)
    assert shown["schema"] == "gptfast.show/1" and (shown["name"], shown["scheme"]) == ("tiny-draft", "plain")
    assert not shown["current"]
    used = gptfast.run("--use", "tiny-draft")
    assert (used.returncode, used.stdout, used.stderr) == (0, b"", b"Current model: tiny-draft\n")
    assert json.loads(gptfast.run("--show", "tiny-draft", "--json").stdout)["current"]
    lines = gptfast.run("--show", "tiny-draft").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [name for name in shown if name != "schema"]


def test_a_model_that_is_nowhere_is_neither_shown_nor_made_current(gptfast: CommandLine) -> None:
    for option in ("--show", "--use"):
        outcome = gptfast.run(option, "nosuch")
        assert (outcome.returncode, outcome.stdout) == (3, b"")
        assert outcome.stderr.startswith(b"error: model 'nosuch' not found (looked in folders, the store and the HF")


def test_settings_are_shown_with_the_variables_and_the_file_that_set_them(gptfast: CommandLine, home: Path) -> None:
    file = home / ".config" / "gptfast" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[generate]\ntemperature = 0.5\n")
    shown = json.loads(gptfast.with_environment(GPTFAST_THREADS="2").run("--show-settings", "--json").stdout)
    assert shown["settings_file"] == str(file) and shown["defaults"] == {"generate": {"temperature": "0.5"}}
    assert shown["environment"]["GPTFAST_THREADS"] == "2"
