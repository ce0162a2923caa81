"""A program in a warm process is what it is in a new interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from cli.warm_start import WarmServer, fixed_variables

ENDINGS = {
    "code": "import sys; sys.exit(3)",
    "message": "import sys; print('text'); sys.exit('message')",
    "nothing": "print('text', end='')",
    "atexit": "import atexit, sys; atexit.register(print, 'last'); print('error', file=sys.stderr); sys.exit(4)",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('last'))).start()",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "input": "import sys; print(sys.stdin.read().upper(), sys.stdin.encoding, sys.stdin.errors, sys.stdout.errors)",
    "place": "import os, sys; print(os.getcwd(), sys.argv, sorted(os.environ), sys.path[0], __name__)",
}


@pytest.mark.parametrize(
    "line", [["--version"], ["generate", "--nope"], ["--list", "--json"], ["generate", "x", "--model", "no/such"]]
)
def test_the_program_says_and_ends_as_in_a_new_interpreter(gptfast: CommandLine, line: list[str]) -> None:
    new = subprocess.run([*gptfast.program, *line], env=gptfast.environment, capture_output=True, check=False)
    warm = gptfast.run(*line)
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_as_a_new_interpreter_does(
    gptfast: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, is_module: bool
) -> None:
    (tmp_path / "ending.py").write_text(ENDINGS[ending])
    monkeypatch.chdir(tmp_path)
    named = ("-m", "ending") if is_module else (str(tmp_path / "ending.py"),)
    program = CommandLine((sys.executable, *named), gptfast.environment)
    new = program.run("argument", stdin="größer".encode())
    warm = program.run_warm(gptfast.server(), "argument", stdin="größer".encode())
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)


def test_a_variable_that_imports_may_read_wants_a_new_interpreter(gptfast: CommandLine) -> None:
    assert isinstance(gptfast.server(), WarmServer)
    assert gptfast.with_environment(HF_ENDPOINT="http://127.0.0.1").server() is gptfast.server()
    assert gptfast.with_environment(OMP_NUM_THREADS="1").server() is None
    assert ("OMP_NUM_THREADS", "1") in fixed_variables({"OMP_NUM_THREADS": "1", "HOME": "/"})
