"""A chat at a terminal: what the keys do, and what is on the screen."""

import json
import sys
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of
from cli.typing_in_terminal import CTRL_C, CTRL_D, LEFT, PASTE_ENDED, PASTED, TAB, UP, typing_into

ASKS_FOR_PASTES_TO_BE_MARKED = "\x1b[?2004h"
FAKE = Path(__file__).parent / "fake_chat.py"

pytest.importorskip("readline")


@pytest.fixture
def chat(home: Path) -> CommandLine:
    return CommandLine((sys.executable, str(FAKE), "chat"), environment_of(home))


def test_a_session_from_its_greeting_to_ctrl_d(chat: CommandLine, home: Path) -> None:
    with typing_into(chat) as person:
        greeting = person.see("> ")
        assert "/help lists the commands, Ctrl-D exits. Seed 42." in greeting
        person.enter("Hello")
        assert "0:'Hello'\n" in person.see("context 310 of 2,048")
        person.see("> ")
        person.type(CTRL_D)
        assert person.ends() == 0
    assert person.shown.endswith("(closed)\n")
    assert (home / ".cache" / "gptfast" / "chat_history").read_text() == '"Hello"\n'


def test_arrow_keys_edit_a_line_and_recall_it(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("smal" + LEFT + "l")
        person.see("0:'small'")
        person.see("> ")
        person.enter(UP + "er")
        person.see("1:'smaller'")


def test_the_history_outlives_the_session_and_is_private(chat: CommandLine, home: Path) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("one\\")
        person.see(". ")
        person.enter("two")
        person.see(r"0:'one\ntwo'")
        person.see("> ")
        person.enter("/exit")
        assert person.ends() == 0
    history = home / ".cache" / "gptfast" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line) for line in history.read_text().splitlines()] == ["one\ntwo", "/exit"]
    with typing_into(chat) as person:
        person.see("> ")
        person.enter(UP + UP)
        person.see(r"0:'one\ntwo'")


def test_a_pasted_text_of_many_lines_is_one_message(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        assert ASKS_FOR_PASTES_TO_BE_MARKED in person.shown
        person.type(f"{PASTED}first\nsecond\n{PASTE_ENDED}")
        person.enter("")
        person.see(r"0:'first\nsecond'")


def test_ctrl_c_stops_the_answer_keeps_what_was_shown_of_it_and_the_chat_goes_on(
    chat: CommandLine, tmp_path: Path
) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("slow")
        person.see("1 2 ")
        person.type(CTRL_C + CTRL_C)
        shown = "1 2 " + person.see("\n").rstrip("\n")
        person.see("Stopped")
        person.see("> ")
        person.enter("and now")
        person.see("1:'and now'")
        person.see("> ")
        person.enter(f"/save {tmp_path / 'chat'}")
        person.see("Saved")
    assert repr(("slow", shown)) in (tmp_path / "chat").read_text()


def test_ctrl_c_clears_the_line_and_says_once_how_to_leave(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        for said in ("Ctrl-D or /exit exits.", ""):
            person.see("> ")
            person.type("half a line")
            person.see("half a line")
            person.pause()
            person.type(CTRL_C)
            assert said in person.see("> ")
            person.enter("all")
            person.see("'all'")
    assert person.shown.count("Ctrl-D or /exit exits.") == 1


def test_what_is_typed_during_an_answer_stays_out_of_it_and_waits_for_the_prompt(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("slow")
        person.see("1 2 ")
        person.enter("ahead")
        assert "ahead" not in person.see("6 7 ")
        person.see("1:'ahead'")


def test_tab_completes_commands_and_the_files_of_save(chat: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("one")
        person.see("> ")
        person.enter(f"/sa{TAB}{tmp_path}/a f{TAB}chat.json")
        person.see(f"Saved to {tmp_path}/a folder/chat.json.")
    assert (tmp_path / "a folder" / "chat.json").exists()


@pytest.mark.parametrize("way_out", ["/drop", "/reset"])
def test_a_message_without_room_waits_for_what_makes_room(chat: CommandLine, way_out: str) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("one")
        person.see("> ")
        person.enter("big")
        person.see("The context is full.\nhint: /drop forgets the oldest exchange.")
        person.see("> ")
        person.enter(way_out)
        person.see("0:'big'")


def test_an_answer_that_filled_the_context_says_what_can_be_dropped(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("long")
        person.see("The context is full: /drop the oldest exchange (61 tokens) or /reset all.")


@pytest.mark.parametrize(
    ("line", "says"), [("/rest", "Did you mean /reset?"), ("memory", "Not enough memory"), ("wrong", "refuses")]
)
def test_an_error_costs_one_line(chat: CommandLine, line: str, says: str) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter(line)
        person.see(says)
        person.see("> ")
        person.enter("go on")
        person.see("0:'go on'")


def test_an_escape_from_the_model_never_reaches_the_terminal(chat: CommandLine) -> None:
    with typing_into(chat) as person:
        person.see("> ")
        person.enter("escape")
        person.see("\N{SYMBOL FOR ESCAPE}[31mtext")
    assert "\x1b[31m" not in person.shown


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_escapes_gets_none(chat: CommandLine, variables: dict[str, str]) -> None:
    with typing_into(chat.with_environment(**variables)) as person:
        person.see("> ")
        person.enter("Hello")
        person.see("context")
        person.see("> ")
        person.type(CTRL_D)
        assert person.ends() == 0
    assert "\x1b" not in person.shown


@pytest.mark.parametrize("during", ["slow", ""])
def test_sigterm_ends_with_143_and_leaves_the_terminal_as_it_was(chat: CommandLine, during: str) -> None:
    with typing_into(chat) as person:
        before = person.mode()
        person.see("> ")
        if during:
            person.enter(during)
            person.see("1 2 ")
        person.pause()
        person.process.terminate()
        assert person.ends() == 143
        assert person.mode() == before


def test_a_prompt_is_shown_as_the_first_message(chat: CommandLine) -> None:
    with typing_into(chat, "--prompt", "Hello") as person:
        person.see("\n> Hello\n")
        person.see("0:'Hello'\n")
