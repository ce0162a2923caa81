"""`gptfast bench --plan` as a person and as a program meet it."""

import json
from pathlib import Path

import pytest

from cli.command_line import CommandLine

A100 = ("--device-bandwidth", "1700", "--device-memory", "80")
LINKED = (*A100, "--link-bandwidth", "200")
LLAMA = ("bench", "--plan", "llama-2-70b")


def test_no_progress_is_shown_any_more_where_the_tables_are_written(gptfast: CommandLine) -> None:
    code, screen = gptfast.run_in_terminal("bench", "--plan", "tiny", *A100)
    cursor_is_shown_again = "\x1b[?25h"
    assert code == 0 and cursor_is_shown_again in screen
    assert screen.index("headroom") > screen.rindex(cursor_is_shown_again)


def test_the_tables_fit_80_columns_and_say_what_has_no_room(gptfast: CommandLine) -> None:
    code, screen = gptfast.with_environment(NO_COLOR="1").run_in_terminal(
        *LLAMA, "--tp", "1,2,8", *LINKED, "--batch-size", "1,64", "--quiet"
    )
    lines = screen.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    assert lines[0] == "llama-2-70b: 69.0 B parameters, plain, bfloat16"
    memory, speed = (n for n, line in enumerate(lines) if line.startswith("tp  batch  context"))
    assert "headroom" in lines[memory] and "tok/s" in lines[speed]
    assert [line.split()[:3] for line in lines[memory + 1 : memory + 7]] == [
        line.split()[:3] for line in lines[speed + 1 : speed + 7]
    ]
    assert lines[speed + 1].endswith("no room") and "-62.3 GB" in lines[memory + 1]
    assert lines[speed + 3].split()[-3:] == ["21.4", "21.4", "87%"]
    assert "less a reserve of 5%" in " ".join(lines) and "48 us" in " ".join(lines)


def test_the_document_has_all_of_it_and_null_for_what_is_not_known(gptfast: CommandLine) -> None:
    outcome = gptfast.run(*LLAMA, "--mode", "int4", "--tp", "1,2", *A100, "--json", "--quiet")
    assert outcome.returncode == 0 and outcome.stderr == b""
    document = json.loads(outcome.stdout)
    assert document["schema"] == "gptfast.plan/1"
    assert (document["model"], document["scheme"], document["head_scheme"]) == ("llama-2-70b", "int4-g32", "int8")
    assert document["hardware"]["bandwidth_gbps"] == 1700 and document["hardware"]["link_gbps"] is None
    alone, shared = document["rows"]
    assert alone["fits"] and alone["tok_s"] == pytest.approx(1 / alone["step_s"])
    assert alone["step_s"] == pytest.approx(alone["read_s"] + alone["layers_s"] + alone["exchange_s"])
    assert shared["exchange_s"] is shared["step_s"] is shared["tok_s"] is shared["mbu"] is None
    assert {"tp", "batch_size", "context", "weight_bytes", "kv_bytes", "buffer_bytes", "headroom_bytes",
            "max_context", "max_batch_size", "step_bytes"} <= set(shared)  # fmt: skip


def test_a_plan_says_which_figures_it_lacks(gptfast: CommandLine) -> None:
    text = gptfast.run(*LLAMA, "--tp", "2", "--device-memory", "80").stdout.decode()
    assert "tok/s needs --device-bandwidth" in text and "--tp above 1 needs --link-bandwidth" in text


def test_a_plan_for_this_machine_just_works(gptfast: CommandLine) -> None:
    outcome = gptfast.run("bench", "--plan", "tiny", "--threads", "1", "--dtype", "float32", "--kv-dtype", "int8")
    text = outcome.stdout.decode()
    assert text.startswith("tiny: 2.16 M parameters, plain, float32; int8 keys and values\n")
    assert outcome.returncode == 0 and "(measured here, now)" in text and "no room" not in text
    assert outcome.stderr.decode().startswith("Model: tiny")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--efficiency", "0.5"], "--efficiency requires --plan"),
        (["--device-memory", "80", "--arch", "llama-2-7b"], "--device-memory requires --plan"),
        ([*LLAMA[1:], "--arch", "llama-2-7b"], "--arch and --plan exclude"),
        ([*LLAMA[1:], "-m", "tiny"], "--model and --plan exclude"),
        (["tiny", *LLAMA[1:]], "MODEL and --plan exclude"),
        ([*LLAMA[1:], "--reps", "3"], "--reps and --plan exclude"),
        ([*LLAMA[1:], "--output", "csv"], "--output and --plan exclude"),
        ([*LLAMA[1:], *A100, "--threads", "2"], "--threads and --device-bandwidth exclude each other"),
    ],
)
def test_what_does_not_go_with_a_plan_is_a_usage_error(gptfast: CommandLine, arguments: list[str], says: str) -> None:
    outcome = gptfast.run("bench", *arguments)
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 2 and outcome.stdout == b""
    assert says in stderr and "hint: " in stderr and len(stderr.splitlines()) <= 5


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
# by hand: query, key, value, output, gate, up, down of a layer, in weights and in groups of 128 of a row
LAYER_WEIGHTS = 256 * (256 + 128 + 128 + 256 + 512 + 512) + 256 * 512
PLAIN_BYTES = 2 * (2 * 1000 * 256 + 5 * 256)  # embedding, head and norms in bfloat16


def weight_bytes(gptfast: CommandLine, model: str) -> tuple[str, int]:
    """(scheme, bytes of the weights) of a plan."""
    document = json.loads(gptfast.run("bench", "--plan", model, *A100, "--json").stdout)
    return document["scheme"], document["rows"][0]["weight_bytes"]


def test_a_quantized_repository_is_planned_with_the_bits_that_its_config_declares(
    gptfast: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    plain = PLAIN_BYTES + 2 * 2 * LAYER_WEIGHTS
    assert weight_bytes(gptfast, str(file)) == ("plain", plain)
    file.write_text(json.dumps(CONFIG | {"quantization_config": AWQ}))
    tables = 2 * 4 * 16 * 4  # the values of 16 codes in float32, of each weight
    packed = PLAIN_BYTES + 2 * (LAYER_WEIGHTS // 2 + LAYER_WEIGHTS // 128 * 3) + tables
    assert weight_bytes(gptfast, str(file)) == ("awq-4bit-g128", packed)
    outcome = gptfast.run("bench", "--plan", str(file), "--mode", "int8", *A100)
    assert outcome.returncode == 2 and b"already quantized (awq-4bit-g128)" in outcome.stderr
    file.write_text(json.dumps(CONFIG | {"quantization_config": AWQ | {"modules_to_not_convert": ["v_proj"]}}))
    values = 2 * 128 * 256
    assert weight_bytes(gptfast, str(file))[1] == packed + 2 * values - (values // 2 + values // 128 * 3)


def test_a_declaration_without_bits_is_no_plain_model(gptfast: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "quark"}}))
    outcome = gptfast.run("bench", "--plan", str(file), *A100)
    assert outcome.returncode == 2 and b"quantized by quark with an unknown number of bits" in outcome.stderr
