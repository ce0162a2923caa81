"""`gptfast bench` as a person and as a program meet it: a table that fits, documents that parse, errors that help."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cli.command_line import CommandLine, environment_of

SHAPE = "layers=2,dim=32,heads=2,ffn=48,vocab=99,context=64"
# heads that the CPU engine does not run in bfloat16, which is not every CPU's default
QUICK = ("bench", "--arch", SHAPE, "--threads", "1", "--dtype", "bfloat16", "--reps", "1")
SHORT = ("--prompt-len", "8", "--gen-len", "4")
MIXED = (*QUICK, "--prompt-len", "8", "--gen-len", "4,70", "--depth", "0,5", "--batch-size", "1,3")
REPEATED = (*QUICK[:-1], "5", *SHORT)
N_ROWS = 3 * 2 * 2
FEW = (*QUICK, "--prompt-len", "8", "--gen-len", "4,70", "--depth", "5")
N_FEW_ROWS = 3
WITHOUT_PROBES = str(Path(__file__).parent / "bench_without_probes.py")


@pytest.fixture
def bench(home: Path) -> CommandLine:
    """The program, whose `bench` knows the bandwidth."""
    return CommandLine((sys.executable, WITHOUT_PROBES), environment_of(home))


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


def test_the_document_has_the_keys_that_others_build_on(bench: CommandLine) -> None:
    document = json.loads(output(bench.run(*MIXED, "--json")), parse_constant=no_constant)
    assert document["schema"] == "gptfast.bench/1"
    assert (document["scheme"], document["seed"], document["compile"], document["reps"]) == ("plain", 0, None, 1)
    assert (
        document["environment"]["threads"] == 1
        and document["environment"]["backend"] == "reference"
        and "commit" in document["environment"]
    )
    assert document["bytes"] > document["n_params"] > 0 and document["load_s"] > 0
    bandwidth = document["bandwidth"]
    assert 0 < bandwidth["min_gbps"] <= bandwidth["median_gbps"] <= bandwidth["max_gbps"]
    assert len(document["rows"]) == N_ROWS
    for row in document["rows"]:
        check_row(row)
    assert document["command"].startswith("gptfast bench --arch")


def test_each_json_line_stands_alone(bench: CommandLine) -> None:
    lines = output(bench.run(*FEW, "--output", "jsonl")).splitlines()
    assert len(lines) == N_FEW_ROWS
    for line in lines:
        row = json.loads(line, parse_constant=no_constant)
        assert row["schema"] == "gptfast.bench.row/1" and row["environment"]["torch"]
        check_row(row)


def test_csv_has_a_value_for_every_column(bench: CommandLine) -> None:
    rows = list(csv.DictReader(io.StringIO(output(bench.run(*FEW, "--output", "csv")))))
    assert len(rows) == N_FEW_ROWS
    assert {
        "test",
        "batch_size",
        "tok_s_mean",
        "tok_s_sd",
        "mbu",
        "error",
        "commit",
        "torch",
        "backend",
        "seed",
    } <= set(rows[0])
    assert all(None not in row and None not in row.values() for row in rows)
    assert all(bool(row["tok_s_mean"]) != bool(row["error"]) for row in rows)


def test_markdown_is_a_table_of_equally_wide_rows_and_a_line_about_the_machine(bench: CommandLine) -> None:
    table, _, about = output(bench.run(*FEW, "--output", "md")).partition("\n\n")
    lines = table.splitlines()
    assert len(lines) == 2 + N_FEW_ROWS and len({line.count("|") for line in lines}) == 1
    assert about.count("\n") == 1 and "torch" in about and "gptfast bench" in about and "; reference backend; " in about


def test_the_table_fits_80_columns_of_a_terminal_and_is_aligned(bench: CommandLine) -> None:
    code, screen = bench.with_environment(NO_COLOR="1").run_in_terminal(*FEW, "--batch-size", "1,3", "--quiet")
    lines = screen.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    heading = next(line for line in lines if line.startswith("test"))
    ends = [heading.index(name) + len(name) for name in ("batch", "tok/s")]
    rows = [line for line in lines if line.startswith(("pp8@d5", "tg4@d5"))]
    assert len(rows) == 4
    for row in rows:
        assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for end in ends)
    assert sum("tokens of context, and the model has 64" in line for line in lines if line.startswith("tg70")) == 2
    assert any("memory reads" in line for line in lines)


def test_a_live_terminal_ends_with_the_table_alone_and_a_pipe_has_no_escapes(bench: CommandLine) -> None:
    code, screen = bench.run_in_terminal(*QUICK, *SHORT)
    assert code == 0 and "of 4 runs" in screen and screen.rstrip().endswith("ms\x1b[0m")
    outcome = bench.run(*QUICK, *SHORT)
    assert b"\x1b" not in outcome.stdout + outcome.stderr
    assert outcome.stderr.startswith(b"Model: layers=2")


def test_quiet_leaves_the_results(bench: CommandLine) -> None:
    outcome = bench.run(*QUICK, *SHORT, "--quiet")
    assert outcome.returncode == 0 and outcome.stderr == b"" and b"tg4" in outcome.stdout


def test_the_schemes_of_a_shape_are_those_that_were_asked_for(bench: CommandLine) -> None:
    ask = (*QUICK, "--prompt-len", "0", "--gen-len", "4", "--mode", "int4", "--groupsize", "64", "--head", "plain")
    table = output(bench.run(*ask))
    assert "parameters, int4-g64-head-plain," in " ".join(table.split())
    assert "pp" not in table.partition("test ")[2]
    usual = output(bench.run(*QUICK, "--prompt-len", "0", "--gen-len", "1", "--mode", "int4"))
    assert "parameters, int4-g32 layers, int8 head," in " ".join(usual.split())


def test_bench_of_a_model_without_any_option_names_it(gptfast: CommandLine) -> None:
    outcome = gptfast.run("bench", *SHORT, "--reps", "1", "--threads", "1")
    text = output(outcome)
    assert text.startswith("tiny: 2.16 M parameters, plain")
    reads = re.search(r"memory reads ([\d.,]+) GB/s", " ".join(text.split()))
    assert reads is not None and float(reads[1].replace(",", "")) > 0
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
        (["--fail-above", "5"], "--fail-above requires --compare"),
        (["--compare", "f.json", "--fail-above", "101"], "--fail-above must be a number from 0 to 100, not '101'"),
        (["--plan", "llama-2-7b", "--compare", "f.json"], "--compare and --plan exclude"),
        (["--plan", "llama-2-7b", "--plot", "f.svg"], "--plot and --plan exclude"),
        (["--plot", "speed.png"], "--plot writes .svg, not 'speed.png'"),
        (["--plot", "no/such/speed.svg"], "--plot cannot write to 'no/such/speed.svg'"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(gptfast: CommandLine, arguments: list[str], says: str) -> None:
    outcome = gptfast.run("bench", *arguments)
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 2 and outcome.stdout == b""
    assert says in stderr and "hint: " in stderr and len(stderr.splitlines()) <= 5


def test_a_model_of_the_environment_gives_way_to_a_shape(bench: CommandLine) -> None:
    asked = bench.with_environment(GPTFAST_MODEL="no/such")
    assert output(asked.run(*QUICK, *SHORT)).startswith("layers=2")


def test_where_no_row_works_the_table_says_why_and_the_command_fails(bench: CommandLine) -> None:
    outcome = bench.run(*QUICK, "--prompt-len", "100", "--gen-len", "0")
    assert outcome.returncode == 1
    assert b"needs 100 tokens of context, and the model has 64" in outcome.stdout


def test_ctrl_c_keeps_what_was_measured(bench: CommandLine) -> None:
    # from the third run on both rows have warmed up, and the first was timed
    code, stdout = bench.interrupted_at(rb"([3-9]|\d\d|\d,\d+) of [\d,]+ runs", *QUICK[:-1], "100000", *SHORT, "--json")
    document = json.loads(stdout)
    assert code == 130
    assert document["interrupted"] is True
    assert document["rows"][0]["tok_s"]["mean"] > 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of two rows, each of five repetitions, prints with --json."""
    bench = CommandLine((sys.executable, WITHOUT_PROBES), environment_of(tmp_path_factory.mktemp("home")))
    return json.loads(output(bench.run(*REPEATED, "--json")))


def older(recorded: dict[str, Any], file: Path, factor: float, **changes: Any) -> str:
    """A file of the run as if its repetitions had taken this many times as long."""
    document = json.loads(json.dumps(recorded)) | changes
    for row in document["rows"]:
        row["repetitions"] = [factor * each for each in row["repetitions"]]
    file.write_text(json.dumps(document))
    return str(file)


def test_a_run_that_lost_speed_fails_and_names_the_rows(
    bench: CommandLine, recorded: dict[str, Any], tmp_path: Path
) -> None:
    file = older(recorded, tmp_path / "older.json", 1e-6)
    outcome = bench.run(*REPEATED, "--compare", file, "--fail-above", "5", "-q")
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 1 and len(stderr.splitlines()) <= 5
    assert stderr.startswith(f"error: More than 5 % slower than in {file}: 2 of 2 rows.\n")
    assert "pp8 batch 1: 0.000x of the older speed; 95 % interval 0.000 to 0.000." in stderr
    assert "tg4 batch 1: 0.000x of the older speed; 95 % interval 0.000 to 0.000." in stderr
    rows = [line for line in outcome.stdout.decode().splitlines() if line.endswith("too slow")]
    assert [row.split()[:2] for row in rows] == [["pp8", "1"], ["tg4", "1"]]


def test_a_run_that_gained_speed_passes_and_its_document_has_the_ratios(
    bench: CommandLine, recorded: dict[str, Any], tmp_path: Path
) -> None:
    file = older(recorded, tmp_path / "older.json", 1e4)
    document = json.loads(output(bench.run(*REPEATED, "--compare", file, "--fail-above", "5", "--json")))
    assert document["comparison"] == {"file": file, "fail_above": 5.0}
    for row in document["rows"]:
        compared = row["comparison"]
        assert compared["ratio_range"][0] <= compared["ratio"] <= compared["ratio_range"][1]
        assert compared["ratio"] > 10 and not compared["exceeds_limit"] and not compared["unclear"]
        assert compared["older_tok_s"] < row["tok_s"]["median"] and compared["differences"] == []
        assert recorded["command"] in compared["run"]


@pytest.mark.parametrize("form", ["csv", "md", "jsonl"])
def test_every_format_has_the_ratio(bench: CommandLine, recorded: dict[str, Any], tmp_path: Path, form: str) -> None:
    file = older(recorded, tmp_path / "older.json", 1e4)
    text = output(bench.run(*REPEATED, "--compare", file, "--output", form))
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert all(float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"]) for row in rows)
    elif form == "jsonl":
        assert all(json.loads(line)["comparison"]["ratio"] > 10 for line in text.splitlines())
    else:
        heading, _, *rows = text.partition("\n\n")[0].splitlines()
        assert heading.endswith("| older | ratio | 95 % interval |") and len(rows) == 2
        assert all(re.search(r"x \| [\d.]+ to [\d.]+ \|$", row) for row in rows)


def test_a_comparison_fits_80_columns_and_says_what_else_differs(
    bench: CommandLine, recorded: dict[str, Any], tmp_path: Path
) -> None:
    changed = {**recorded["environment"], "threads": 7, "backend": "cpu"}
    file = older(recorded, tmp_path / "older.json", 1.0, environment=changed)
    code, screen = bench.with_environment(NO_COLOR="1").run_in_terminal(*REPEATED, "--compare", file, "-q")
    assert code == 0 and max(map(len, screen.splitlines())) <= 80
    assert "Not measured under the same conditions: threads 7 then, 1 now." in screen
    assert "Not measured under the same conditions: backend cpu then, reference now." in screen
    refused = bench.run(*REPEATED, "--compare", file, "--fail-above", "5")
    assert refused.returncode == 2 and refused.stdout == b""
    assert b"threads 7 then, 1 now" in refused.stderr


def test_the_chart_has_a_bar_for_each_row_and_a_line_for_the_older_speed(
    bench: CommandLine, recorded: dict[str, Any], tmp_path: Path
) -> None:
    file = older(recorded, tmp_path / "older.json", 2.0)
    output(bench.run(*REPEATED, "--depth", "0,60", "--compare", file, "--plot", str(tmp_path / "speed.svg")))
    picture = ET.parse(tmp_path / "speed.svg").getroot()
    found = [(each.tag.rpartition("}")[2], each.get("class")) for each in picture.iter()]
    assert found.count(("rect", "bar row")) == 3 and found.count(("line", "mark")) == 2
    texts = [each.text or "" for each in picture.iter() if each.tag.endswith("}text")]
    assert {"pp8", "tg4", "pp8@d60", "tg4@d60"} <= set(texts)
    assert any(text.startswith("needs 68 toke") for text in texts), "a row that failed has its error"
    assert "var(--" not in (tmp_path / "speed.svg").read_text()
