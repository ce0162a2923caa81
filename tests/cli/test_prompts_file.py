"""`gptfast generate --prompts-file` as a person runs it: streams, views, exit codes, and kills that lose nothing."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of

FAKE = Path(__file__).parent / "fake_batch.py"
ARGUMENTS = ("generate", "--prompts-file", "x.jsonl")

Fake = Callable[..., CommandLine]


@pytest.fixture
def fake(home: Path) -> Fake:
    """The program with a make-believe model, and the variables that tell it how to behave."""
    program = CommandLine((sys.executable, str(FAKE)), environment_of(home))
    return lambda **variables: program.with_environment(**{f"FAKE_{name}": str(n) for name, n in variables.items()})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(n: int, path: Path, process: "subprocess.Popen[bytes]") -> None:
    while n_lines(path) < n:
        assert process.poll() is None, f"it ended, and {path} never had {n} lines"
        time.sleep(0.002)


def lines_of(content: bytes) -> list[int]:
    return [json.loads(line)["line"] for line in content.splitlines()]


def test_records_go_to_stdout_in_order_and_all_else_to_stderr(fake: Fake) -> None:
    outcome = fake().run(*ARGUMENTS)
    assert outcome.returncode == 0
    assert lines_of(outcome.stdout) == list(range(1, 13)) and outcome.stdout.isascii()
    stderr = outcome.stderr.decode()
    assert "\x1b" not in stderr and max(map(len, stderr.splitlines())) <= 80
    for number in (
        "12 of 12",
        "1,625 tok/s",
        "1,520 tok/s",
        "310 MB",
        "compile 4.20 s",
        "48 + 360",
        "1.50 s in all",
        "seed 42",
    ):
        assert number in stderr


def test_unordered_records_come_as_they_finish(fake: Fake) -> None:
    lines = lines_of(fake().run(*ARGUMENTS, "--unordered").stdout)
    assert sorted(lines) == list(range(1, 13)) != lines


def test_with_an_output_stdout_is_empty_and_quiet_is_silent(fake: Fake, output: Path) -> None:
    outcome = fake().run(*ARGUMENTS, "--output", str(output), "--quiet")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")
    assert output.read_bytes() == fake().run(*ARGUMENTS).stdout
    assert b"12 from an earlier run" in fake().run(*ARGUMENTS, "--output", str(output)).stderr


def test_a_bad_row_ends_the_run_with_1_and_one_line(fake: Fake) -> None:
    outcome = fake(BAD=4).run(*ARGUMENTS)
    assert outcome.returncode == 1 and len(outcome.stdout.splitlines()) == 12
    assert b"x.jsonl:4: nope" in outcome.stderr
    assert b"error: 1 of 12 rows failed.\n" in outcome.stderr


def test_ctrl_c_says_how_far_it_came_and_the_same_command_goes_on(fake: Fake, output: Path) -> None:
    arguments = (*ARGUMENTS, "--output", str(output))
    with fake(STUCK=12).start(*arguments) as process:
        wait_for(3, output, process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b" of 12 rows are done; the same command goes on from there.\n" in stderr
    assert fake().run(*arguments).returncode == 0
    assert lines_of(output.read_bytes()) == list(range(1, 13))


def test_ctrl_c_without_an_output_tells_what_is_finished(fake: Fake) -> None:
    with fake(STUCK=2, ROWS=5).start(*ARGUMENTS) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.5)  # 3, 4 and 5 finish too, and wait for 2
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert lines_of(first + rest) == [1, 3, 4, 5]
    assert b"Interrupted: 4 of 5 rows are done.\n" in stderr


def test_sigterm_ends_with_143_and_keeps_what_is_done(fake: Fake, output: Path) -> None:
    with fake(STUCK=12).start(*ARGUMENTS, "--output", str(output)) as process:
        wait_for(3, output, process)
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and b"error" not in stderr
    assert lines_of(output.read_bytes()) == list(range(1, n_lines(output) + 1))


def test_two_runs_never_write_one_file(fake: Fake, output: Path) -> None:
    arguments = (*ARGUMENTS, "--output", str(output))
    with fake(STUCK=12).start(*arguments) as process:
        wait_for(1, output, process)
        second = fake().run(*arguments)
        process.kill()
    assert second.returncode == 2 and b"another run is writing it" in second.stderr


def test_a_reader_that_leaves_is_no_reason_to_speak(fake: Fake) -> None:
    with fake(ROWS=100_000).start(*ARGUMENTS, "--quiet") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_full_stdout_ends_with_8(fake: Fake) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full, fake().start(*ARGUMENTS, "--quiet", stdout=full) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 8 and len(stderr.decode().splitlines()) <= 5


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_rows_rate_and_the_time_left(fake: Fake, output: Path, columns: int) -> None:
    slow = fake(DELAY=0.05, BAD=4)
    code, to_file = slow.run_in_terminal(*ARGUMENTS, "--output", str(output), columns=columns)
    assert code == 1
    for shown in (" of 12 rows", "400 tok/s", "tokens", "s left", "x.jsonl:4: nope"):
        assert shown in to_file
    assert "\x1b[1;23r" not in to_file and '"line"' not in to_file
    code, to_screen = slow.run_in_terminal(*ARGUMENTS, columns=columns)
    assert code == 1 and " of 12 rows" in to_screen and "s left" in to_screen
    assert to_screen.rindex("\x1b[r") > to_screen.rindex("\x1b[1;23r"), "the scrolling region must be given back"
    assert to_screen.count('"line": ') == 12 and "\x1b[31m wärm" not in to_screen


def killed_at_random(command_line: CommandLine, *arguments: str, output: Path, chance: random.Random) -> int:
    """Run and kill -9 at moments that move on with the output, until a run ends by itself; returns the kills."""
    for kills in range(200):
        goal = n_lines(output) + chance.randrange(1, 12)
        process = command_line.start_silent(*arguments, "--output", str(output))
        while not process.has_ended() and n_lines(output) < goal:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.kill()
        if process.wait(60) == 0:
            return kills
    raise AssertionError("no run came to its end")


@pytest.mark.parametrize("order", [(), ("--unordered",)], ids=["in order", "unordered"])
def test_kills_at_random_moments_lose_and_repeat_no_row(fake: Fake, output: Path, order: tuple[str, ...]) -> None:
    program = fake(ROWS=30, DELAY=0.004)
    assert killed_at_random(program, *ARGUMENTS, *order, output=output, chance=random.Random(3)) > 2
    there, undisturbed = output.read_bytes().splitlines(), program.run(*ARGUMENTS).stdout.splitlines()
    assert (sorted(there, key=lambda line: json.loads(line)["line"]) if order else there) == undisturbed
    assert not output.with_name("out.jsonl.waiting").exists()


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))


def test_a_write_that_the_system_cuts_short_leaves_whole_records(fake: Fake, output: Path) -> None:
    with fake().start(*ARGUMENTS, "--output", str(output), preexec_fn=limit_file_size) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and b"error: File too large" in stderr
    n_kept = n_lines(output)
    assert n_kept > 1 and lines_of(output.read_bytes()) == list(range(1, n_kept + 1))
    assert fake().run(*ARGUMENTS, "--output", str(output)).returncode == 0
    assert lines_of(output.read_bytes()) == list(range(1, 13))


TINY = ("generate", "-m", "tiny", "--dtype", "float32", "--batch-size", "4")


def write_prompts(path: Path, n_rows: int) -> None:
    rows = [{"id": f"row {n}", "prompt": "Tom was", "max_tokens": 10 + 17 * n % 40} for n in range(n_rows)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def undisturbed(gptfast: CommandLine, arguments: tuple[str, ...], output: Path) -> list[bytes]:
    """What a run with the seed of an output writes, in its order or any."""
    seed = json.loads(output.read_text().splitlines()[0])["seed"]
    return gptfast.run(*arguments, "--quiet", "--seed", str(seed)).stdout.splitlines()


def test_a_real_model_answers_what_it_can(gptfast: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "Tom was", "max_tokens": 3}\n{"prompt": "x", "temprature": 1}\n')
    outcome = gptfast.run(*TINY, "--prompts-file", str(tmp_path / "x.jsonl"))
    assert outcome.returncode == 1
    answer, refusal = map(json.loads, outcome.stdout.splitlines())
    assert " ".join(answer) == "id line text token_ids finish_reason prompt_tokens seed request"
    assert len(answer["token_ids"]) == 3 and refusal["error"]["message"] in outcome.stderr.decode()


@pytest.mark.slow
def test_a_killed_run_of_a_real_model_goes_on_to_the_same_bytes(
    gptfast: CommandLine, tmp_path: Path, output: Path
) -> None:
    write_prompts(tmp_path / "x.jsonl", 16)
    arguments = (*TINY, "--prompts-file", str(tmp_path / "x.jsonl"))
    with gptfast.start(*arguments, "--output", str(output)) as process:
        wait_for(3, output, process)
        process.kill()
    assert gptfast.run(*arguments, "--output", str(output)).returncode == 0
    assert output.read_bytes().splitlines() == undisturbed(gptfast, arguments, output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [(), ("--unordered",)], ids=["in order", "unordered"])
def test_many_kills_of_a_real_model_lose_and_repeat_no_row(
    gptfast: CommandLine, tmp_path: Path, output: Path, order: tuple[str, ...], seed: int
) -> None:
    write_prompts(tmp_path / "x.jsonl", 60)
    arguments = (*TINY, "--prompts-file", str(tmp_path / "x.jsonl"), *order)
    assert killed_at_random(gptfast, *arguments, output=output, chance=random.Random(seed)) > 1
    there, expected = output.read_bytes().splitlines(), undisturbed(gptfast, arguments, output)
    assert sorted(there) == sorted(expected) if order else there == expected
