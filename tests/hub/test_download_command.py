"""`gptfast download` as a person and a program see it, and the lines that must work one after another."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.checkpoints.store import bundled_folder
from hub.downloads import REPO, WEIGHTS, some_files
from hub.fake_hub import TOKEN, FakeHub
from model_files import converted, saved, settings_in

LLAMA = "meta-llama/Llama-2-7b-chat-hf"
SHAPE = {
    "vocab_size": 1536,  # the bundled tokenizer's
    "max_position_embeddings": 1024,
    "hidden_size": 64,  # whole vectors, so that the native engine runs it
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")


@pytest.fixture
def gptfast(hub: FakeHub, tmp_path: Path) -> CommandLine:
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home") | environment)


def model(folder: Path, **changes: int) -> dict[str, bytes]:
    """Files of a small Llama that speaks with the bundled tokenizer."""
    saved(folder, **{**SHAPE, **changes})
    for name in TOKENIZER_FILES:
        shutil.copy(bundled_folder("tiny") / name, folder / name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_lines_of_the_contract_run_one_after_another(
    hub: FakeHub, gptfast: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(LLAMA, model(tmp_path / "target"))
    model(tmp_path / "draft", num_hidden_layers=1)
    settings = tmp_path / "home" / ".config" / "gptfast" / "config.toml"  # or the benchmark takes a minute
    settings.parent.mkdir(parents=True)
    settings.write_text("[bench]\nreps = 1\nprompt-len = 0\ngen-len = 8\n")
    monkeypatch.chdir(tmp_path)
    converted(tmp_path / "draft", settings_in(tmp_path / "elsewhere"), out=tmp_path / "ckpt")
    lines = [
        f"download {LLAMA}",
        "quantize --mode int4 --groupsize 32",
        "generate --draft ckpt",
        "bench --batch-size 1,2,4,8",
    ]
    output = []
    for line in lines:
        outcome = gptfast.run(*line.split())
        assert outcome.returncode == 0, f"{line}: {outcome.stderr.decode()}"
        output.append(outcome.stderr.decode() + outcome.stdout.decode())
    assert f"{LLAMA}: " in output[0] and "now the current model" in output[0]
    assert f"{LLAMA}:int4-g32 is now the current model" in output[1]
    assert f"{LLAMA}:int4-g32" in output[2] and "tokens a round" in output[2]
    assert f"{LLAMA}:int4-g32" in output[3] and "tg8" in output[3]
    assert TOKEN not in "".join(output)


def test_json_is_one_document_with_the_keys_that_others_build_on(hub: FakeHub, gptfast: CommandLine) -> None:
    files = some_files()
    hub.add(REPO, files)
    outcome = gptfast.run("download", REPO, "--json")
    document = json.loads(outcome.stdout)
    assert outcome.returncode == 0 and document["schema"] == "gptfast.download/1"
    assert (document["name"], document["bytes"]) == (REPO, sum(file["bytes"] for file in document["files"]))
    assert (Path(document["path"]) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert {"name": WEIGHTS, "bytes": 300_000, "was_there": False, "begun_bytes": 0, "verified_by": "sha256"} in (
        document["files"]
    )


def test_a_dry_run_shows_files_disk_and_memory(hub: FakeHub, gptfast: CommandLine, tmp_path: Path) -> None:
    hub.add(REPO, model(tmp_path / "model"))
    outcome = gptfast.run("download", REPO, "--dry-run")
    lines = outcome.stdout.decode().splitlines()
    assert outcome.returncode == 0, outcome.stderr
    assert lines[0].split() == ["FILE", "SIZE", "HERE"] and lines[1].split()[0] == "config.json"
    assert lines[-1].startswith("memory to run it: ") and " in int4" in lines[-1]
    assert any(" to fetch; " in line and line.endswith("free") for line in lines)


def test_a_pipe_gets_plain_lines_and_the_path_alone_on_stdout(hub: FakeHub, gptfast: CommandLine) -> None:
    hub.add(REPO, some_files())
    outcome = gptfast.run("download", REPO)
    stderr = outcome.stderr.decode()
    assert "\x1b" not in stderr and f"{WEIGHTS}: 300 kB" in stderr
    assert Path(outcome.stdout.decode().strip()).is_dir()
    assert gptfast.run("download", REPO, "--quiet").stderr == b""


def test_a_terminal_shows_a_row_for_each_file_and_one_for_all(hub: FakeHub, gptfast: CommandLine) -> None:
    hub.add(REPO, some_files(3_000_000))
    hub.fail(WEIGHTS, "hold 0.5", "ok")
    code, shown = gptfast.with_environment(HF_HUB_DOWNLOAD_TIMEOUT="2").run_in_terminal("download", REPO)
    assert code == 0, shown
    assert "1.50 MB of 3.00 MB" in shown and "download" in shown and WEIGHTS in shown and "/s" in shown


def test_a_gated_repository_says_in_five_lines_what_to_do(hub: FakeHub, gptfast: CommandLine) -> None:
    hub.add(LLAMA, some_files(), gated=True)
    outcome = gptfast.with_environment(HF_TOKEN="").run("download", LLAMA)
    lines = outcome.stderr.decode().splitlines()
    errors = lines[next(n for n, line in enumerate(lines) if line.startswith("error: ")) :]
    assert outcome.returncode == 4 and len(errors) <= 5
    assert f"{hub.url}/{LLAMA}" in outcome.stderr.decode() and "hf auth login" in outcome.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["org/nothing"], 3),
        (["no name at all"], 2),
        ([REPO, "--revision", "v9"], 3),
        ([REPO, "--include", "*.none"], 3),
        ([REPO, "--max-workers", "0"], 2),
    ],
)
def test_an_ending_has_its_code_and_no_token(
    hub: FakeHub, gptfast: CommandLine, arguments: list[str], code: int
) -> None:
    hub.add(REPO, some_files())
    outcome = gptfast.run("download", *arguments, "--debug")
    assert outcome.returncode == code, outcome.stderr
    assert TOKEN.encode() not in outcome.stdout + outcome.stderr
    assert b"hint: " in outcome.stderr
