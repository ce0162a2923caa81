"""`gptfast bench` as a person and as a program meet it: a table that fits, documents that parse, errors that help."""

import csv
import io
import json
import re
import signal
import subprocess
from typing import Any

import pytest

from cli.command_line import CommandLine

QUICK = ("bench", "--arch", "layers=2,dim=32,heads=2,ffn=48,vocab=99,context=64", "--threads", "1", "--reps", "1")
SHORT = ("--prompt-len", "8", "--gen-len", "4")
MIXED = (*QUICK, "--prompt-len", "8", "--gen-len", "4,70", "--depth", "0,5", "--batch-size", "1,3")
N_ROWS = 3 * 2 * 2


def output(outcome: "subprocess.CompletedProcess[bytes]") -> str:
    assert outcome.returncode == 0, outcome.stderr.decode()
    return outcome.stdout.decode()


def check_row(row: dict[str, Any]) -> None:
    assert {"test", "phase", "model", "scheme", "batch_size", "n_prompt", "n_gen", "depth", "tok_s", "gbps", "mbu",
            "peak_memory_bytes", "repetitions", "error"} <= set(row)  # fmt: skip
    if row["n_gen"] == 70:
        assert row["error"].endswith("tokens of context, and the model has 64")
        assert row["tok_s"] is row["gbps"] is row["mbu"] is row["peak_memory_bytes"] is None
        return
    assert row["error"] is None and len(row["repetitions"]) == 1
    assert row["tok_s"]["mean"] == row["tok_s"]["median"] > 0 and row["tok_s"]["sd"] is None
    assert (row["mbu"] is None) == (row["phase"] == "prefill")
    assert row["peak_memory_bytes"] > 0


def no_constant(name: str) -> None:
    raise AssertionError(name)


def test_the_document_has_the_keys_that_others_build_on(gptfast: CommandLine) -> None:
    document = json.loads(output(gptfast.run(*MIXED, "--json")), parse_constant=no_constant)
    assert document["schema"] == "gptfast.bench/1"
    assert (document["scheme"], document["seed"], document["compile"], document["reps"]) == ("plain", 0, None, 1)
    assert document["environment"]["threads"] == 1 and "commit" in document["environment"]
    assert document["bytes"] > document["n_params"] > 0 and document["load_s"] > 0
    bandwidth = document["bandwidth"]
    assert 0 < bandwidth["min_gbps"] <= bandwidth["median_gbps"] <= bandwidth["max_gbps"]
    assert len(document["rows"]) == N_ROWS
    for row in document["rows"]:
        check_row(row)
    assert document["command"].startswith("gptfast bench --arch")


def test_each_json_line_stands_alone(gptfast: CommandLine) -> None:
    lines = output(gptfast.run(*MIXED, "--output", "jsonl")).splitlines()
    assert len(lines) == N_ROWS
    for line in lines:
        row = json.loads(line, parse_constant=no_constant)
        assert row["schema"] == "gptfast.bench.row/1" and row["environment"]["torch"]
        check_row(row)


def test_csv_has_a_value_for_every_column(gptfast: CommandLine) -> None:
    rows = list(csv.DictReader(io.StringIO(output(gptfast.run(*MIXED, "--output", "csv")))))
    assert len(rows) == N_ROWS
    assert {"test", "batch_size", "tok_s_mean", "tok_s_sd", "mbu", "error", "commit", "torch", "seed"} <= set(rows[0])
    assert all(None not in row and None not in row.values() for row in rows)
    assert all(bool(row["tok_s_mean"]) != bool(row["error"]) for row in rows)


def test_markdown_is_a_table_of_equally_wide_rows_and_a_line_about_the_machine(gptfast: CommandLine) -> None:
    table, _, about = output(gptfast.run(*MIXED, "--output", "md")).partition("\n\n")
    lines = table.splitlines()
    assert len(lines) == 2 + N_ROWS and len({line.count("|") for line in lines}) == 1
    assert about.count("\n") == 1 and "torch" in about and "gptfast bench" in about


def test_the_table_fits_80_columns_of_a_terminal_and_is_aligned(gptfast: CommandLine) -> None:
    code, screen = gptfast.with_environment(NO_COLOR="1").run_in_terminal(*MIXED, "--quiet")
    lines = screen.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    heading = next(line for line in lines if line.startswith("test"))
    ends = [heading.index(name) + len(name) for name in ("batch", "tok/s")]
    rows = [line for line in lines if line.startswith(("pp8 ", "tg4 ", "pp8@d5", "tg4@d5"))]
    assert len(rows) == 8
    for row in rows:
        assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for end in ends)
    assert sum("tokens of context, and the model has 64" in line for line in lines if line.startswith("tg70")) == 4
    assert any("memory reads" in line for line in lines)


def test_a_live_terminal_ends_with_the_table_alone_and_a_pipe_has_no_escapes(gptfast: CommandLine) -> None:
    code, screen = gptfast.run_in_terminal(*QUICK, *SHORT)
    assert code == 0 and "of 4 runs" in screen and screen.rstrip().endswith("ms\x1b[0m")
    outcome = gptfast.run(*QUICK, *SHORT)
    assert b"\x1b" not in outcome.stdout + outcome.stderr
    assert outcome.stderr.startswith(b"Model: layers=2")


def test_quiet_leaves_the_results(gptfast: CommandLine) -> None:
    outcome = gptfast.run(*QUICK, *SHORT, "--quiet")
    assert outcome.returncode == 0 and outcome.stderr == b"" and b"tg4" in outcome.stdout


def test_the_schemes_of_a_shape_are_those_that_were_asked_for(gptfast: CommandLine) -> None:
    ask = (*QUICK, "--prompt-len", "0", "--gen-len", "4", "--mode", "int4", "--groupsize", "64", "--head", "plain")
    table = output(gptfast.run(*ask))
    assert "parameters, int4-g64-head-plain," in " ".join(table.split())
    assert "pp" not in table.partition("test ")[2]
    usual = output(gptfast.run(*QUICK, "--prompt-len", "0", "--gen-len", "1", "--mode", "int4"))
    assert "parameters, int4-g32 layers, int8 head," in " ".join(usual.split())


def test_bench_of_a_model_without_any_option_names_it(gptfast: CommandLine) -> None:
    outcome = gptfast.run("bench", *SHORT, "--reps", "1", "--threads", "1")
    assert output(outcome).startswith("tiny: 2.16 M parameters, plain")
    assert outcome.stderr.startswith(b"Model: tiny (bundled)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json", "--output", "csv"], "--json and --output csv exclude"),
        (["--output", "xml"], "no format 'xml'"),
        (["--mode", "int4"], "--mode requires --arch"),
        (["tiny", "-m", "tiny-draft"], "are two models"),
        (["tiny", "--arch", "llama-2-7b"], "MODEL and --arch exclude"),
        (["--arch", "llama-2-8b"], "no shape called 'llama-2-8b'"),
        (["--arch", "tinyllama-1.1b", "--mode", "int3"], "no scheme called 'int3'"),
        (
            ["--batch-size", "1,two"],
            "--batch-size must be whole numbers of at least 1, such as 1,2,4 or 1..8, not '1,two'",
        ),
        (["--prompt-len", "0", "--gen-len", "0"], "nothing to measure"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(gptfast: CommandLine, arguments: list[str], says: str) -> None:
    outcome = gptfast.run("bench", *arguments)
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 2 and outcome.stdout == b""
    assert says in stderr and "hint: " in stderr and len(stderr.splitlines()) <= 5


def test_a_model_of_the_environment_gives_way_to_a_shape(gptfast: CommandLine) -> None:
    asked = gptfast.with_environment(GPTFAST_MODEL="no/such")
    assert output(asked.run(*QUICK, *SHORT)).startswith("layers=2")


def test_where_no_row_works_the_table_says_why_and_the_command_fails(gptfast: CommandLine) -> None:
    outcome = gptfast.run(*QUICK, "--prompt-len", "100", "--gen-len", "0")
    assert outcome.returncode == 1
    assert b"needs 100 tokens of context, and the model has 64" in outcome.stdout


def test_ctrl_c_keeps_what_was_measured(gptfast: CommandLine) -> None:
    with gptfast.start(*QUICK[:-1], "100000", *SHORT, "--json") as process:
        assert process.stderr is not None
        n_done = 0
        while n_done < 3:  # both rows have warmed up, and the first was timed
            found = re.search(rb"([\d,]+) of [\d,]+ runs", process.stderr.readline())
            n_done = int(found[1].replace(b",", b"")) if found else 0
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    document = json.loads(stdout)
    assert process.returncode == 130
    assert document["interrupted"] is True
    assert document["rows"][0]["tok_s"]["mean"] > 0
