"""Quantizing from the command line: what goes where, what a person sees, and how mistakes are answered."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cli.command_line import CommandLine

QUICK = ("--no-fidelity", "--dtype", "float32")


def test_the_contracts_line_quantizes_and_the_next_one_generates_from_it(gptfast: CommandLine) -> None:
    outcome = gptfast.run("quantize", "--mode", "int4", "--groupsize", "32")
    assert outcome.returncode == 0, outcome.stderr.decode()
    (place,) = outcome.stdout.decode().splitlines()
    assert Path(place).is_dir()
    output = outcome.stderr.decode()
    assert "Model: tiny (bundled)" in output and "tiny:int4-g32 is now the current model." in output
    assert max(len(line) for line in output.splitlines() if place not in line) <= 80

    generation = json.loads(gptfast.run("generate", "7 + 5 =", "--temperature", "0", "--json").stdout)
    assert generation["model"] == "tiny:int4-g32"
    (current,) = [line.split() for line in gptfast.run("--list").stdout.decode().splitlines() if line.startswith("*")]
    assert current[1:6] == ["tiny:int4-g32", "store", "llama", "int4", "int8"]


def test_json_has_the_keys_that_others_build_on(gptfast: CommandLine) -> None:
    outcome = gptfast.run("quantize", "tiny-draft", "--mode", "int8", "--json")
    document = json.loads(outcome.stdout)
    assert document["schema"] == "gptfast.quantize/1"
    assert document.keys() >= {"path", "name", "bytes", "fidelity"}
    assert document["fidelity"].keys() >= {"tokens", "kld_mean", "kld_p99", "same_top1", "ppl_ratio", "alpha"}
    assert document["bytes"] == sum(part["n_bytes"] for part in document["parts"]) < document["bytes_before"]

    dry = json.loads(gptfast.run("quantize", "tiny", "--dry-run", "--json").stdout)
    assert dry["fidelity"] is None and dry["is_written"] is False and not Path(dry["path"]).exists()


def test_a_terminal_shows_what_it_cost_within_80_columns(gptfast: CommandLine) -> None:
    code, screen = gptfast.with_environment(NO_COLOR="1").run_in_terminal("quantize", "tiny", "--mode", "int4")
    lines = {line.split()[0]: line for line in screen.splitlines() if line.strip()}
    assert code == 0 and "\x1b" not in screen
    assert "bits a weight" in lines["size"] and "accepted as the original's draft" in lines["alpha"]
    assert all(len(line) <= 80 for line in screen.splitlines() if not line.startswith("/"))


def test_a_dry_run_is_a_table_on_stdout(gptfast: CommandLine, home: Path) -> None:
    outcome = gptfast.run("quantize", "tiny", "--mode", "int4", "--dry-run")
    heading, *rows = outcome.stdout.decode().splitlines()
    assert heading.split() == ["PART", "SCHEME", "PARAMETERS", "BEFORE", "AFTER", "BITS", "A", "WEIGHT"]
    assert rows[-1].split() == ["tiny:int4-g32", "2.16", "M", "4.33", "MB", "1.38", "MB", "5.11"]
    assert not (home / ".cache").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--mode", "int4-gptq"), "tiny-draft:int4-g32-gptq"),
        (("--mode", "int4", "--rounding", "gptq", "--groupsize", "128"), "tiny-draft:int4-g128-gptq"),
        (("--mode", "int8-search", "--rounding", "search"), "tiny-draft:int8-search"),
        (("--mode", "int4-nearest"), "tiny-draft:int4-g32"),
    ],
)
def test_a_scheme_and_a_rounding_can_be_one_word(gptfast: CommandLine, arguments: tuple[str, ...], name: str) -> None:
    outcome = gptfast.run("quantize", "tiny-draft", *arguments, "--dry-run", "--json")
    assert json.loads(outcome.stdout)["name"] == name, outcome.stderr.decode()


def test_gpt_fasts_spelling_of_a_calibration_is_understood(gptfast: CommandLine) -> None:
    options = {
        "--calibration-limit": "100",
        "--calibration-seq-length": "100",
        "--percdamp": ".01",
        "--blocksize": "128",
    }
    arguments = [part for option in options.items() for part in option]
    outcome = gptfast.run("quantize", "tiny-draft", "--mode", "int4-gptq", *arguments, "--threads", "1", *QUICK)
    assert outcome.returncode == 0 and b"layer 2 of 2: " in outcome.stderr
    assert Path(outcome.stdout.decode().strip()).name == "tiny-draft@int4-g32-gptq"


def test_quiet_leaves_the_place_alone(gptfast: CommandLine) -> None:
    outcome = gptfast.run("quantize", "tiny", "--quiet", *QUICK)
    assert outcome.stderr == b"" and len(outcome.stdout.splitlines()) == 1


def test_the_environments_model_gives_way_to_the_argument(gptfast: CommandLine) -> None:
    elsewhere = gptfast.with_environment(GPTFAST_MODEL="tiny-draft")
    assert b"Model: tiny-draft " in elsewhere.run("quantize", "--dry-run").stderr
    assert b"Model: tiny " in elsewhere.run("quantize", "tiny", "--dry-run").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "what", "hint"),
    [
        (("--mode", "int5"), 2, "no scheme called 'int5'", "Did you mean int"),
        (
            ("--mode", "int4", "--groupsize", "0"),
            2,
            "--groupsize must be a whole number of at least 1",
            "quantize --help",
        ),
        (("--groupsize", "64"), 2, "int8 has no groups", "Leave out --groupsize"),
        (("--rounding", "up"), 2, "no quantizer called 'up'", "nearest"),
        (("--no-fidelity", "--fidelity-text", "f"), 2, "exclude each other", "Leave out"),
        (("-m", "tiny-draft"), 2, "are two models", "Name one"),
        (("--dtype", "int8"), 2, "no dtype called", "Dtypes"),
        (("--mode", "int4-gptq", "--rounding", "search"), 2, "name two quantizers", "Name one"),
        (
            ("--mode", "int4-search", "--percdamp", ".02"),
            2,
            "search rounding uses no calibration text",
            "--rounding gptq",
        ),
        (
            ("--mode", "int4", "--calibration", "bundled"),
            2,
            "nearest rounding uses no calibration text",
            "Leave them out",
        ),
        (
            ("--mode", "int4-gptq", "--blocksize", "0"),
            2,
            "--blocksize must be a whole number of at least 1",
            "quantize --help",
        ),
        (("--head", "int8", "--embeddings", "plain"), 2, "are tied (one matrix)", "Give one"),
    ],
)
def test_a_mistake_is_answered_in_a_few_lines(
    gptfast: CommandLine, arguments: tuple[str, ...], code: int, what: str, hint: str
) -> None:
    outcome = gptfast.run("quantize", "tiny", *arguments)
    output = outcome.stderr.decode()
    assert (outcome.returncode, outcome.stdout) == (code, b"")
    assert what in output and hint in output.partition("hint: ")[2]
    assert len([line for line in output.splitlines() if not line.startswith("Model: ")]) <= 5


def test_quantizing_twice_and_replacing_are_refused(gptfast: CommandLine) -> None:
    assert gptfast.run("quantize", "tiny", *QUICK).returncode == 0
    again = gptfast.run("quantize", "tiny", *QUICK)
    assert again.returncode == 0 and b"already exists" in again.stderr
    other = gptfast.run("quantize", "tiny", "--mode", "int4", "--out", again.stdout.decode().strip(), *QUICK)
    assert other.returncode == 2 and b"--force" in other.stderr
    assert gptfast.run("quantize", "tiny", "--force", *QUICK).returncode == 0
    twice = gptfast.run("quantize", "tiny:int8", "--mode", "int4")
    assert twice.returncode == 2 and b"is already quantized (int8)" in twice.stderr


def test_a_divergence_without_bounds_is_null_in_json(tmp_path: Path) -> None:
    from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
    from gptfast_cli.render.checkpoints import KEYS
    from gptfast_cli.render.json import to_document
    from model_files import drained, settings_in

    quantized = drained(run(QuantizeRequest(settings_in(tmp_path), model="tiny-draft")))[1]
    assert quantized.fidelity is not None
    divergence = replace(quantized.fidelity.divergence, kld_mean=math.inf, ppl_ratio=math.nan)
    unbounded = replace(quantized, fidelity=replace(quantized.fidelity, divergence=divergence))
    fidelity = to_document(unbounded, KEYS)["fidelity"]
    assert isinstance(fidelity, dict)
    assert fidelity["kld_mean"] is fidelity["ppl_ratio"] is None and fidelity["alpha"] > 0.9
