"""A real shell in a terminal, typed into as a person would; tmux plays the terminal."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.command_line import environment_of

COMPLETION_LINES = {
    "bash": "source <(gptfast --show-completion bash)",
    "zsh": "source <(gptfast --show-completion zsh)",
    "fish": "gptfast --show-completion fish | source",
}
"""What a person writes into each shell's start-up file."""

_STARTS = {
    "bash": ("bash --norc --noprofile", "PS1='% '"),
    "zsh": ("zsh -f", "PROMPT='%% '"),
    "fish": ("fish", "function fish_prompt; echo -n '% '; end; set -g fish_autosuggestion_enabled 0"),
}  # bare, and with a screen that is easy to read

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class ShellInTerminal:
    """One shell; `%` is its prompt, and its screen is wide enough for any line."""

    tmux: tuple[str, ...]
    name: str

    def completed(self, typed: str) -> str:
        """What the line has become after TAB."""
        self._type(typed, "Tab")
        self._send("-l", "QQ")  # a shell reads it after it has answered TAB
        screen = self._wait_for(lambda screen: _last_line(screen).endswith("QQ"))
        return _last_line(screen).removesuffix("QQ").removeprefix("% ")

    def listed(self, typed: str, *expected: str) -> str:
        """The screen that shows all of the expected texts after TAB."""
        self._type(typed, *["Tab"] * (2 if self.name == "bash" else 1))
        return self._wait_for(lambda screen: all(text in screen.partition(typed.rstrip())[2] for text in expected))

    def run(self, line: str) -> None:
        self._send("-l", line)
        self._send("Enter")

    def wait_for(self, text: str) -> None:
        self._wait_for(lambda screen: text in screen)

    def _type(self, typed: str, *keys: str) -> None:
        self._send("C-u")
        self._send("C-l")
        self._wait_for(lambda screen: screen.strip() == "%")
        self._send("-l", typed)
        self._wait_for(lambda screen: _last_line(screen).endswith(typed.rstrip()))
        self._send(*keys)

    def _send(self, *keys: str) -> None:
        subprocess.run([*self.tmux, "send-keys", *keys], check=True, timeout=20)

    def _wait_for(self, is_there: Callable[[str], bool]) -> str:
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            screen = subprocess.run(
                [*self.tmux, "capture-pane", "-p"], check=True, timeout=20, capture_output=True, text=True
            ).stdout
            if is_there(screen):
                return screen
            assert time.monotonic() < end, f"the screen stays:\n{screen}"
            time.sleep(0.05)


@contextmanager
def shell_in_terminal(name: str, home: Path, folder: Path, completion_line: str) -> Iterator[ShellInTerminal]:
    """The shell in a terminal of its own, in that folder, with completion turned on by that line."""
    command, prompt = _STARTS[name]
    environment = environment_of(home) | {"HISTFILE": ""}
    environment["PATH"] = f"{_program_folder(home)}:{environment['PATH']}"
    with TemporaryDirectory() as socket_folder:  # a socket's path must be short
        tmux = ("tmux", "-f", "/dev/null", "-S", f"{socket_folder}/socket")
        start = ["new-session", "-d", "-x", "160", "-y", "50", "-c", str(folder), command]
        subprocess.run([*tmux, *start], env=environment, check=True, timeout=20)
        try:
            shell = ShellInTerminal(tmux, name)
            shell.run(prompt)
            shell.run(completion_line)
            shell.run("echo re''ady")
            shell.wait_for("\nready\n")
            yield shell
        finally:
            subprocess.run([*tmux, "kill-server"], check=False, timeout=20)


def _last_line(screen: str) -> str:
    return next((line for line in reversed(screen.splitlines()) if line.startswith("% ")), "")


def _program_folder(home: Path) -> Path:
    folder = home / "bin"
    folder.mkdir()
    program = folder / "gptfast"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gptfast_cli "$@"\n')
    program.chmod(0o755)
    return folder
