"""The grammar of a chat's lines."""

from pathlib import Path

import pytest

from gptfast_cli.commands.interactive import COMMANDS, Call, Message, completions, help_lines, parse
from gptfast_cli.core.errors import UsageError


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("Hello", Message("Hello")),
        (" /exit", Message(" /exit")),
        ("//etc/hosts", Message("/etc/hosts")),
        ("a /reset", Message("a /reset")),
        ("/exit", Call("exit", "")),
        ("/exit  ", Call("exit", "")),
        ("/system", Call("system", "")),
        ("/system  Be  brief.\nBe kind. ", Call("system", "Be  brief.\nBe kind.")),
        ("/save my chat.json", Call("save", "my chat.json")),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, meaning: Message | Call) -> None:
    assert parse(line) == meaning


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/quit", "Unknown command: /quit", "Did you mean /exit?"),
        ("/zzz", "Unknown command: /zzz", "/help lists"),
        ("/sistem x", "Unknown command: /sistem", "Did you mean /system?"),
        ("/", "Unknown command: /", "write two"),
        ("/usr/bin", "Unknown command: /usr/bin", "write two"),
        ("/save", "/save requires a FILE", ""),
        ("/reset all", "/reset takes no argument", ""),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        parse(line)
    assert hint in refused.value.hint


def test_help_names_every_command_within_80_columns() -> None:
    lines = help_lines()
    assert max(map(len, lines)) <= 80
    for command in COMMANDS:
        assert any(line.startswith(f"/{command.name}") for line in lines)


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("/s", ["/system ", "/save "]),
        ("/dr", ["/drop"]),
        ("/nothing", []),
        ("Hello", []),
        ("", []),
        ("/system Be", []),
    ],
)
def test_a_slash_and_a_beginning_complete_to_commands(line: str, candidates: list[str]) -> None:
    assert completions(line) == candidates


def test_save_completes_to_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chats").mkdir()
    for name in ("chat 1.json", ".hidden"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions("/save ") == ["/save chat 1.json", "/save chats/"]
    assert completions("/save chat ") == ["/save chat 1.json"]
    assert completions("/save .h") == ["/save .hidden"]
    assert completions("/save ~/chats") == ["/save ~/chats/"]
    assert completions(f"/save {tmp_path}/chats") == [f"/save {tmp_path}/chats/"]
    assert completions("/save /no/such/folder/x") == []
