"""A chat in a script: each line of stdin a turn, the answers on stdout, all else on stderr."""

import signal
import sys
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of

FAKE = Path(__file__).parent / "fake_chat.py"


@pytest.fixture
def chat(home: Path) -> CommandLine:
    return CommandLine((sys.executable, str(FAKE), "chat"), environment_of(home))


def test_each_line_is_a_turn_and_the_answers_go_to_stdout_and_nothing_else(chat: CommandLine) -> None:
    outcome = chat.run(stdin=b"Hello\n\nnothing\nescape\nlast")
    assert outcome.returncode == 0
    assert outcome.stdout == b"0:'Hello'\n\nred \x1b[31mtext\n3:'last'\n"
    stderr = outcome.stderr.decode()
    assert stderr.count("tokens \N{MIDDLE DOT} 178 tok/s \N{MIDDLE DOT} TTFT 12.0 ms") == 4
    assert "context 310 of 2,048" in stderr
    assert "Seed 42." in stderr and "/help" not in stderr, "nobody is there to ask for help"
    assert "\x1b" not in stderr and "> " not in stderr


def test_quiet_leaves_the_answers_alone(chat: CommandLine) -> None:
    outcome = chat.run("--quiet", stdin=b"/reset\nHello\n")
    assert outcome.stdout == b"0:'Hello'\n"
    assert outcome.stderr == b"(closed)\n"


def test_the_prompt_is_the_first_message_as_it_stands(chat: CommandLine) -> None:
    assert chat.run("--prompt", "/exit", stdin=b"Hello\r\n").stdout == b"0:'/exit'\n1:'Hello'\n"


def test_a_line_that_ends_with_a_backslash_goes_on_in_the_next(chat: CommandLine) -> None:
    assert chat.run(stdin=b"one\\\ntwo\\\nthree\nfour\\\n").stdout == b"0:'one\\ntwo\\nthree'\n1:'four'\n"


def test_two_slashes_begin_a_message_with_one(chat: CommandLine) -> None:
    assert chat.run(stdin=b"//usr/bin\n").stdout == b"0:'/usr/bin'\n"


def test_commands_do_what_they_say(chat: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    lines = ["one", "two", "/drop", "three", f"/save {file}", "/reset", "four"]
    lines += ["/system Be brief.", "/system", "/system -", "/system", "/exit", "never sent"]
    outcome = chat.run(stdin="\n".join(lines).encode())
    assert outcome.returncode == 0
    assert outcome.stdout == b"0:'one'\n1:'two'\n1:'three'\n0:'four'\n"
    assert file.read_text() == repr([("two", "1:'two'"), ("three", "1:'three'")])
    stderr = outcome.stderr.decode()
    assert "Dropped the oldest exchange (61 tokens)." in stderr and f"Saved to {file}." in stderr
    assert stderr.index("\nBe brief.\n") < stderr.index("\nThere is no system message.\n")


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"/rest", 2, "Unknown command: /rest.\nhint: Did you mean /reset?"),
        (b"/save", 2, "/save requires a FILE"),
        (b"/exit now", 2, "/exit takes no argument"),
        (b"wrong", 2, "The template refuses this"),
        (b"memory", 7, "Not enough memory"),
        (b"big", 2, "The context is full"),
        (b"\xff", 2, "not text in UTF-8"),
    ],
)
def test_the_first_error_ends_a_script_with_its_exit_code(chat: CommandLine, line: bytes, code: int, says: str) -> None:
    outcome = chat.run(stdin=b"one\n" + line + b"\ntwo\n")
    stderr = outcome.stderr.decode()
    assert outcome.returncode == code
    assert outcome.stdout == b"0:'one'\n"
    assert says in stderr and "(closed)" in stderr


def test_ctrl_c_ends_a_script_with_130_and_keeps_the_text(chat: CommandLine) -> None:
    with chat.start(stdin=-1) as process:
        process.stdin.write(b"slow\nmore\n")
        process.stdin.flush()
        assert process.stdout.read(4) == b"1 2 "
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert rest.endswith(b"\n") and b"Stopped" in stderr and b"more" not in rest


def test_no_history_is_kept_of_a_script(chat: CommandLine, home: Path) -> None:
    chat.run(stdin=b"secret\n")
    assert not list(home.rglob("chat_history"))
