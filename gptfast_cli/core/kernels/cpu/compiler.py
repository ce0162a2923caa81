"""The native library, compiled by the machine's own C++ compiler the first time that it is needed.

What comes out is kept under a name that the sources, the flags, the compiler and the processor decide: another
machine or version finds nothing there and compiles its own.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.errors import GptFastError

if sys.platform != "win32":
    import fcntl

_SOURCES = Path(__file__).parent / "native"
_MAIN = "library.cpp"
_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_COMPILERS = ("g++", "clang++", "c++")
_CPU_INFO = Path("/proc/cpuinfo")

ARCH_VARIABLE = "GPTFAST_CPU_ARCH"
"""Names the processor to compile for, as -march= does; `native` where it is not set."""


class NoCompilerError(GptFastError):
    """There is no C++ compiler, or it cannot compile the library."""


def library_file(folder: Path) -> Path:
    """Where the library of this machine is kept; it is there already, or is to be compiled."""
    return folder / f"cpu-{_key(_compiler())}.so"


def compile_library(file: Path) -> None:
    """Compile the library; raises NoCompilerError, with the compiler's first complaint, where that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.with_suffix(".lock")):
        if file.exists():  # another process has just done it
            return
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        command = [_compiler(), *_flags(), str(_SOURCES / _MAIN), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise NoCompilerError(f"{command[0]} could not compile the CPU engine: {complaint}")
        partial.replace(file)


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return path
    raise NoCompilerError(f"There is no C++ compiler (looked for {named or ', '.join(_COMPILERS)}).")


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={os.environ.get(ARCH_VARIABLE, 'native')}")


def _key(compiler: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    status = Path(compiler).stat()
    machine = (platform.machine(), _processor(), compiler, status.st_size, status.st_mtime_ns, _flags())
    digest.update(repr(machine).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do; a home may be shared by machines that differ in it."""
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process after the other in; on Windows all of them, each of which then does the same work."""
    with lock.open("w") as handle:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
