"""The program's start: standard streams and Ctrl-C are in order before anything else is loaded."""

import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130  # ExitCode.INTERRUPTED, which is not loaded yet


def main() -> NoReturn:
    """Run the command line, and end the process with its exit code: with 130 for a Ctrl-C at any time."""
    try:
        _open_closed_streams()
        from gptfast_cli.app import run_process  # noqa: PLC0415  # it takes a while, in which Ctrl-C may come

        code = run_process()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)  # all is done: what the interpreter still tidies up can be left
    sys.exit(code)


def _open_closed_streams() -> None:
    """Let what a shell has closed (`<&-`, `>&-`) be the null device, so that no file gets the number of a stream."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _leave(*_: object) -> NoReturn:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
