"""The program's start: standard streams and Ctrl-C are in order before anything else is loaded, `typing` included."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_INTERRUPTED = 130  # ExitCode.INTERRUPTED, which is not loaded yet
_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"

# Read when PyTorch is loaded: what its C++ logs, as of ranks that do not meet, it raises as well.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def main() -> NoReturn:
    """Run the command line, and end the process with its exit code: with 130 for a Ctrl-C at any time."""
    is_heeded = True
    try:
        import signal  # noqa: PLC0415  # which loads a dozen modules

        is_heeded = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # not so in the background of a script
        if is_heeded:
            signal.signal(signal.SIGINT, _interrupt)
        _open_closed_streams()
        from gptfast_cli.app import run_process  # noqa: PLC0415  # it takes a while, in which Ctrl-C may come

        code = run_process()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if is_heeded:
        signal.signal(signal.SIGINT, _leave)  # all is done: what the interpreter still tidies up can be left
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process; without the interpreter's own end where a thread is left behind.

    It may stand in C++, as one that waits for other ranks does; stopped there, it would abort the process.
    """
    threading = sys.modules.get("threading")
    if threading is None or not any(thread.daemon for thread in threading.enumerate()):
        sys.exit(code)
    import atexit  # noqa: PLC0415
    import contextlib  # noqa: PLC0415

    atexit._run_exitfuncs()  # noqa: SLF001  # there is no public word for it
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # what could not be written has been reported
            stream.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """Let what a shell has closed (`<&-`, `>&-`) be the null device, so that no file gets the number of a stream."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _interrupt(_: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt, or leave at once while a module is loaded.

    There is nothing to tidy up then, and the exception would not arrive: extension modules lose it, or end in errors of
    their own.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(*_: object) -> NoReturn:
    """End the process now; a spinner may have hidden the terminal's cursor."""
    if sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
