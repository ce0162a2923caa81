"""How a command ends: exit codes, at most five lines of error, and signals that leave nothing half-done."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from cli.fake_gptfast import PIECES

SWALLOWS_CTRL_C = """
import sys, time
print("loading", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except BaseException:
    pass
"""
Fake = Callable[[str], CommandLine]


@pytest.mark.parametrize(
    ("scenario", "code", "says"),
    [
        ("no-such-model", 3, "no/such"),
        ("memory", 7, "Not enough memory"),
        ("torch-memory", 7, "can't allocate memory"),
        ("disk", 8, "No space left on the disk: /out/shard"),
        ("denied", 1, "Permission denied: /out"),
        ("fault", 1, "Internal error: ZeroDivisionError: division by zero"),
        ("wordy", 3, "hint: first"),
        ("escape", 3, "\N{SYMBOL FOR ESCAPE}[31mred"),
    ],
)
def test_an_error_is_at_most_five_lines_and_an_exit_code(fake: Fake, scenario: str, code: int, says: str) -> None:
    outcome = fake(scenario).run("generate", "x")
    lines = outcome.stderr.decode().splitlines()
    assert outcome.returncode == code
    assert lines[0].startswith("error: ") and says in "\n".join(lines)
    assert len(lines) <= 5
    assert outcome.stdout == b"Once\n", "the text so far must be ended, so that the error starts a line"


def test_only_debug_shows_where_an_error_arose(fake: Fake) -> None:
    assert b"Traceback" not in fake("fault").run("generate", "x").stderr
    assert b"Traceback" in fake("fault").run("generate", "x", "--debug").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "x", "--nope"), "--nope"),
        (("generate", "x", "--top-k", "many"), "--top-k"),
        (("nosuch",), "nosuch"),
        (("generate", ""), "prompt is empty"),
        (("generate", "x", "--prompt-length", "5"), "More than one prompt"),
        (("generate", "--prompt-ids", "1,two"), "1,two"),
    ],
)
def test_a_usage_error_is_plain_and_ends_with_2(gptfast: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    outcome = gptfast.run(*arguments)
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 2 and outcome.stdout == b""
    assert says in stderr and "hint: " in stderr and len(stderr.splitlines()) <= 5


def test_a_prompt_file_that_is_missing_ends_with_3(gptfast: CommandLine) -> None:
    assert gptfast.run("generate", "--prompt-file", "/no/such/file").returncode == 3


def test_ctrl_c_keeps_the_text_and_shows_the_numbers(fake: Fake) -> None:
    expected = "".join(PIECES[:3]).encode()
    with fake("waits-for-interrupt").start("generate", "x") as process:
        received = _read(process, len(expected))
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert received + rest == expected
    assert b"tok/s" in stderr and b"interrupted" in stderr


def test_a_job_that_cannot_be_stopped_early_ends_with_130(fake: Fake) -> None:
    with fake("streams-for-ever").start("generate", "x") as process:
        _read(process, 1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130 and stderr == b""


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_a_module_is_loaded_ends_with_130(gptfast: CommandLine, tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(SWALLOWS_CTRL_C)
    loading = gptfast.with_environment(PYTHONPATH=f"{tmp_path}:{gptfast.environment['PYTHONPATH']}")
    with loading.start("generate", "x") as process:
        assert process.stderr is not None and process.stderr.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["--help", "generate --top-k x"])
def test_a_closed_stream_is_no_traceback(gptfast: CommandLine, closing: str, arguments: str) -> None:
    line = f'"$0" -m gptfast_cli {arguments} {closing}'
    outcome = CommandLine(("sh", "-c", line, gptfast.program[0]), gptfast.environment).run()
    assert outcome.returncode == (2 if "top-k" in arguments else 0)
    assert b"Traceback" not in outcome.stderr


def test_with_all_streams_closed_text_is_generated_for_nobody(gptfast: CommandLine) -> None:
    line = '"$0" -m gptfast_cli generate hi --threads 1 --max-new-tokens 2 <&- >&- 2>&-'
    outcome = CommandLine(("sh", "-c", line, gptfast.program[0]), gptfast.environment).run()
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")


def test_a_home_that_cannot_be_used_stops_nothing_that_needs_none(gptfast: CommandLine, tmp_path: Path) -> None:
    homeless = gptfast.with_environment(HOME=os.devnull)
    assert homeless.run("--list").returncode == 0
    generated = homeless.run("generate", "hi", "--threads", "1", "--max-new-tokens", "2")
    assert generated.returncode == 0, generated.stderr.decode()
    out = str(tmp_path / "out")
    quantized = homeless.run("quantize", "tiny-draft", "--out", out, "--no-fidelity", "--threads", "1")
    stderr = quantized.stderr.decode()
    assert quantized.returncode == 0 and quantized.stdout.decode().strip() == out
    assert stderr.count("GPTFAST_HOME") == 1 and "is now the current model" not in stderr


def test_what_must_be_kept_at_home_names_the_variable_of_another_home(gptfast: CommandLine) -> None:
    outcome = gptfast.with_environment(HOME=os.devnull).run("quantize", "tiny-draft", "--no-fidelity", "--threads", "1")
    assert outcome.returncode == 1 and b"hint: GPTFAST_HOME can name another folder" in outcome.stderr


def test_sigterm_unwinds_the_job_and_ends_with_143(fake: Fake, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    with fake("waits-for-termination").with_environment(FAKE_PARTIAL=str(partial)).start("generate", "x") as process:
        _read(process, 1)
        assert partial.exists()
        process.terminate()
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 143 and stderr == b""
    assert not partial.exists()


def test_a_reader_that_leaves_is_no_reason_to_speak(fake: Fake) -> None:
    with fake("streams-for-ever").start("generate", "x") as process:
        _read(process, 10)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_full_stdout_ends_with_8(fake: Fake) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full, fake("streams").start("generate", "x", "--json", stdout=full) as process:
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 8 and len(stderr.decode().splitlines()) <= 5


def _read(process: "subprocess.Popen[bytes]", n_bytes: int) -> bytes:
    """The first bytes of stdout; more may follow."""
    assert process.stdout is not None
    received = b""
    while len(received) < n_bytes:
        piece = os.read(process.stdout.fileno(), n_bytes - len(received))
        assert piece, "stdout ended early"
        received += piece
    return received
