"""Compile the native library with the local C++ compiler on first use.

The file name contains a hash of the sources, flags, compiler and CPU features, so another machine or version compiles
its own library. The SHA-256 of the library is stored in a file next to it and checked before loading: a truncated or
modified library is compiled again, never run.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.files import PARTIAL, staged_file, why_untrusted, write_synced

if sys.platform != "win32":
    import fcntl

SOURCES = Path(__file__).parent / "native"
_MAIN = "library.cpp"
_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_COMPILERS = ("g++", "clang++", "c++")
_CPU_INFO = Path("/proc/cpuinfo")
_MODE = 0o700

ARCH_VARIABLE = "GPTFAST_CPU_ARCH"
"""Environment variable: target CPU as in -march= (default: native)."""


class NoCompilerError(GptFastError):
    """No C++ compiler was found, or it failed to compile the library."""


def library_file(folder: Path, sources: Path = SOURCES) -> Path:
    """Path of this machine's library of `sources`, compiled or not. Raises NoCompilerError."""
    return folder / f"cpu-{_key(_compiler(), sources)}.so"


def is_whole(file: Path) -> bool:
    """Whether the library exists and matches its SHA-256, in a folder and files that no other user can write."""
    digest = _digest_file(file)
    try:
        if any(map(why_untrusted, (file.parent, file, digest))):
            return False
        return digest.read_text(encoding="ascii").strip() == sha256(file.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def compile_library(file: Path) -> None:
    """Compile the library, unless it `is_whole`. Raises NoCompilerError with the compiler's first error.

    The folder must come from `private_folder`: `is_whole` is False in a folder that others can write.
    """
    file.parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
    with _alone(file.with_suffix(".lock")):
        if is_whole(file):  # compiled by another process in the meantime
            return
        for stale in file.parent.glob(f".{file.name}*{PARTIAL}"):  # left by killed processes
            stale.unlink(missing_ok=True)
        with staged_file(file) as partial:
            command = [_compiler(), *_flags(), str(SOURCES / _MAIN), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise NoCompilerError(f"{command[0]} could not compile the CPU engine: {complaint}")
            compiled = partial.read_bytes()
            partial.chmod(_MODE)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        # library before digest: if this is interrupted, the old digest does not match and it is compiled again
        with staged_file(_digest_file(file)) as partial:
            write_synced(partial, f"{sha256(compiled).hexdigest()}\n")
            partial.chmod(_MODE)


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return path
    raise NoCompilerError(f"There is no C++ compiler (looked for {named or ', '.join(_COMPILERS)}).")


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={os.environ.get(ARCH_VARIABLE, 'native')}")


def _key(compiler: str, sources: Path) -> str:
    digest = sha256()
    for source in sorted(sources.iterdir()):
        digest.update(source.read_bytes())
    status = Path(compiler).stat()
    machine = (platform.machine(), _processor(), compiler, status.st_size, status.st_mtime_ns, _flags())
    digest.update(repr(machine).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """CPU features; machines with different CPUs may share a home folder."""
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Exclusive lock across processes; none on Windows, where each process may compile."""
    with lock.open("w") as handle:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
