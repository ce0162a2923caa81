"""Models from the command line: converted, generated from, listed, completed and removed."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cli.command_line import CommandLine
from gguf_models import write_model


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
    assert converted.keys() == {"schema", "path", "name", "bytes", "was_there", "is_current"}
    assert converted["is_current"]
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
    assert heading.split() == ["NAME", "WHERE", "FAMILY", "SCHEME", "HEAD", "SIZE", "PARAMETERS", "PATH"]
    assert [row.split()[0] for row in rows] == ["tiny", "tiny-draft", "*"]
    assert rows[-1].split()[:6] == ["*", "small", "store", "llama", "plain", "plain"] and rows[-1].endswith(str(path))
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
    assert (shown["license"], shown["source"]) == ("that of gptfast", "comes with gptfast")
    text = gptfast.run("--show", "tiny-draft").stdout.decode()
    assert "tiny-draft, the current model" in text and "512 tokens" in text and "bfloat16" in text


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


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def cached(home: Path, repo: str, source: Path, **changes: object) -> Path:
    """A repository in the Hugging Face cache of the command line: a copy of a folder with a changed config.json."""
    folder = home / ".cache" / "huggingface" / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "c0ffee"
    shutil.copytree(source, snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text(json.dumps(config_of(source) | changes))
    return snapshot


def test_a_list_says_what_cannot_run_here_and_why(gptfast: CommandLine, home: Path, hf_folder: Path) -> None:
    cached(home, "org/good", hf_folder)
    cached(home, "org/recurrent", hf_folder, model_type="mamba2", state_size=128, architectures=["Mamba2ForCausalLM"])
    cached(home, "org/quark", hf_folder, quantization_config={"quant_method": "quark"})
    cached(home, "org/awq", hf_folder, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})
    (cached(home, "org/begun", hf_folder) / "model.safetensors").unlink()
    (cached(home, "org/text", hf_folder) / "config.json").unlink()
    with (cached(home, "org/huge", hf_folder) / "model.safetensors").open("r+b") as weights:
        weights.truncate(1 << 43)  # sparse
    listed = gptfast.run("--list")
    assert listed.returncode == 0
    models = {each["name"]: each for each in json.loads(gptfast.run("--list", "--json").stdout)["models"]}
    good = models["org/good"]
    assert (good["family"], good["scheme"], good["parameters"], good["problem"]) == ("llama", "plain", 12552, None)
    assert models["org/awq"]["scheme"] == "awq-4bit-g128" and models["org/awq"]["problem"] is None
    assert models["org/text"]["scheme"] is models["org/text"]["problem"] is None
    for name, says in {
        "org/recurrent": "models of type mamba2 are not supported",
        "org/quark": "weights in the format quark are not supported",
        "org/begun": "no file with weights",
        "org/huge": "of memory are free",
    }.items():
        assert says in models[name]["problem"], name
        assert re.search(f"^{name} cannot run here: .*{says}", listed.stderr.decode(), re.MULTILINE), name
        assert next(row for row in listed.stdout.decode().splitlines() if f" {name} " in row).startswith("x"), name
    assert b"org/good cannot" not in listed.stderr


def test_gguf_files_of_a_repository_are_models_each(gptfast: CommandLine, home: Path, hf_folder: Path) -> None:
    snapshot = home / ".cache" / "huggingface" / "hub" / "models--org--files" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    write_model(snapshot / "Small-F32.gguf", LlamaForCausalLM.from_pretrained(hf_folder))
    write_model(snapshot / "Split.gguf", LlamaForCausalLM.from_pretrained(hf_folder), shards=10)
    (snapshot / "Broken-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(96))
    broken, *whole = json.loads(gptfast.run("--list", "--json").stdout)["models"][2:]
    assert broken["name"] == "org/files:Q4_K_M" and broken["bytes"] == 100 and "Broken" in broken["problem"]
    for model, name in zip(whole, ("org/files:F32", "org/files:Split"), strict=True):
        facts = {key: model[key] for key in ("name", "family", "scheme", "parameters", "problem")}
        assert facts == {"name": name, "family": "llama", "scheme": "plain", "parameters": 12552, "problem": None}
    split = [path for path in snapshot.iterdir() if path.name.startswith("Split")]
    assert len(split) > 1 and whole[1]["bytes"] == sum(path.stat().st_size for path in split)
    shown = json.loads(gptfast.run("--show", "org/files:F32", "--json").stdout)
    assert shown["parameters"] == 12552 and shown["shape"]["layers"] == 2

    refused = gptfast.run("--remove", "org/files:F32", "--yes")
    assert refused.returncode == 2 and b"hint: gptfast --remove org/files\n" in refused.stderr
    assert gptfast.run("--remove", "org/files", "--yes").returncode == 0 and not snapshot.exists()


def test_a_card_tells_memory_license_origin_and_drafts(gptfast: CommandLine, home: Path, hf_folder: Path) -> None:
    card = json.loads(gptfast.run("--show", "tiny", "--json").stdout)
    assert [(each["name"], each["kind"]) for each in card["drafts"]] == [("tiny-draft", "model")]
    assert [each["scheme"] for each in card["memory"]] == ["bfloat16", "int8", "int4"]
    assert card["memory"][0]["weight_bytes"] == 2 * card["parameters"]
    kv_bytes = 2 * 2 * 32 * 2 * card["shape"]["layers"]  # keys and values of 2 heads of 32 in bfloat16
    assert card["memory"][0]["total_bytes"] == {"512": 2 * card["parameters"] + 512 * kv_bytes}

    snapshot = cached(home, "org/card", hf_folder)
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: other\nlicense_name: llama3.1\n---\n# A model\n")
    (snapshot / "chat_template.jinja").write_text("{{ messages[0].content }}")
    head = cached(home, "org/head", hf_folder, speculators_config={"verifier": {"name_or_path": "org/card"}})
    assert head.is_dir()
    card = json.loads(gptfast.run("--show", "org/card", "--json").stdout)
    assert (card["license"], card["chat_templates"]) == ("llama3.1", ["default"])
    assert card["source"] == "Hugging Face Hub, org/card at c0ffee"
    assert [(each["name"], each["kind"]) for each in card["drafts"]] == [("org/head", "head")]
    gptfast.run("convert", "org/card", "--quiet", "--no-use")
    converted = gptfast.run("--show", "org/card").stdout.decode()
    assert "llama3.1" in converted and "org/card at c0ffee; written by gptfast" in converted


def test_a_card_of_a_model_that_cannot_run_says_why(gptfast: CommandLine, home: Path, hf_folder: Path) -> None:
    cached(home, "org/recurrent", hf_folder, model_type="mamba2", architectures=["Mamba2ForCausalLM"])
    shown = gptfast.run("--show", "org/recurrent")
    assert shown.returncode == 0
    assert "cannot run" in shown.stdout.decode() and "models of type mamba2 are not supported" in shown.stdout.decode()


def test_a_conversion_leaves_the_current_model_alone_where_that_is_asked(gptfast: CommandLine, hf_folder: Path) -> None:
    gptfast.run("--use", "tiny-draft")
    for command in (("convert", str(hf_folder)), ("quantize", str(hf_folder), "--no-fidelity")):
        outcome = gptfast.run(*command, "--no-use")
        assert outcome.returncode == 0 and b"current model" not in outcome.stderr
        assert json.loads(gptfast.run("--show", "tiny-draft", "--json").stdout)["current"]
    assert b"now the current model" in gptfast.run("quantize", str(hf_folder), "--no-fidelity").stderr


@pytest.mark.parametrize("command", [("--show",), ("--use",), ("--remove",), ("generate", "x", "-m"), ("eval", "-m")])
def test_a_model_that_is_not_found_is_answered_with_the_nearest_and_the_list(
    gptfast: CommandLine, home: Path, hf_folder: Path, command: tuple[str, ...]
) -> None:
    cached(home, "Qwen/Qwen3-8B", hf_folder)
    for asked in ("qwen3-8b", "Qwen/qwen3-8", "qwen3-8b:int4-g32"):
        refused = gptfast.run(*command, asked)
        assert refused.returncode == 3 and len(refused.stderr.splitlines()) <= 5
        assert b"Did you mean Qwen/Qwen3-8B? List the models: gptfast --list" in refused.stderr, (command, asked)


def leave_behind(home: Path) -> tuple[Path, Path, Path]:
    """A checkpoint that was not finished, a download that was not, and a library of another version."""
    store, kernels = home / ".cache" / "gptfast" / "checkpoints", home / ".cache" / "gptfast" / "kernels"
    blobs = home / ".cache" / "huggingface" / "hub" / "models--org--begun" / "blobs"
    staged, partial, library = (
        store / ".small.abc.gptfast-resumable",
        blobs / f"{'a' * 64}.gptfast-partial",
        kernels / "cpu-0123456789abcdef.so",
    )
    staged.mkdir(parents=True)
    blobs.mkdir(parents=True)
    kernels.mkdir(parents=True, exist_ok=True)
    (staged / "weights-00001.safetensors").write_bytes(bytes(3000))
    partial.write_bytes(bytes(2000))
    library.write_bytes(bytes(1000))
    return staged, partial, library


def test_leftovers_are_shown_and_deleted_after_a_question(gptfast: CommandLine, home: Path) -> None:
    gptfast = gptfast.with_environment(GPTFAST_KERNELS="")  # the home's own
    assert b"There is nothing to delete." in gptfast.run("--prune").stderr
    left = leave_behind(home)
    unasked = gptfast.run("--prune")
    assert unasked.returncode == 2 and b"hint: gptfast --prune --yes" in unasked.stderr
    assert all(str(path) in unasked.stdout.decode() and path.exists() for path in left)
    assert "org/begun" in unasked.stdout.decode() and "3.00 kB" in unasked.stdout.decode()
    with left[0].joinpath("held").open("w"):
        handle = os.open(left[0], os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # as its writer does
        assert str(left[0]) not in gptfast.run("--prune").stdout.decode()
        os.close(handle)
    assert gptfast.run("--prune", "-y").returncode == 0
    assert not any(path.exists() for path in left)
    assert [each["name"] for each in json.loads(gptfast.run("--list", "--json").stdout)["models"]] == [
        "tiny",
        "tiny-draft",
    ]
