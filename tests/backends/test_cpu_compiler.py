"""The engine is compiled once for a machine, by whatever compiler is there, and a machine without one is told."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gptfast_cli.core.backends.cpu import compiler
from gptfast_cli.core.backends.cpu.compiler import SOURCES, NoCompilerError, compile_library, is_whole, library_file
from gptfast_cli.core.backends.cpu.library import open_library
from gptfast_cli.core.files import PARTIAL, sibling

STAND_IN = """#!/bin/sh
echo run >> "{log}"
for word; do case "$last" in -o) echo library > "$word";; esac; last=$word; done
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that notes that it ran and writes something in no time."""
    script = tmp_path / "c++"
    script.write_text(STAND_IN.format(log=tmp_path / "log"))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return tmp_path / "log"


def test_the_library_is_compiled_once(stand_in: Path, tmp_path: Path) -> None:
    file = library_file(tmp_path / "kernels")
    assert not is_whole(file)
    for _ in range(2):
        compile_library(file)
    assert is_whole(file)
    assert file.read_text() == "library\n"
    assert stand_in.read_text() == "run\n"
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3])


def _altered(file: Path) -> None:
    file.write_text("Library\n")


def _longer(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def _linked(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _without_digest(file: Path) -> None:
    Path(f"{file}.sha256").unlink()


def _writable_by_others(file: Path) -> None:
    file.chmod(0o722)


@pytest.mark.parametrize("spoil", [_cut_short, _altered, _longer, _linked, _without_digest, _writable_by_others])
def test_a_library_that_is_not_what_was_compiled_is_compiled_again(
    spoil: Callable[[Path], None], stand_in: Path, tmp_path: Path
) -> None:
    file = library_file(tmp_path / "kernels")
    compile_library(file)
    spoil(file)
    assert not is_whole(file)
    compile_library(file)
    assert is_whole(file)
    assert stand_in.read_text() == "run\n" * 2


def test_a_library_in_a_folder_that_others_can_write_is_never_whole(stand_in: Path, tmp_path: Path) -> None:
    file = library_file(tmp_path / "kernels")
    compile_library(file)
    file.parent.chmod(0o770)
    assert not is_whole(file)
    file.parent.chmod(0o755)
    assert is_whole(file)
    if os.getuid() == 0:  # who alone can give a file away
        os.chown(file, 12345, -1)
        assert not is_whole(file)


def test_what_a_killed_compilation_left_is_removed(stand_in: Path, tmp_path: Path) -> None:
    file = library_file(tmp_path / "kernels")
    compile_library(file)
    file.unlink()
    left = sibling(file, PARTIAL)
    left.write_text("half")
    compile_library(file)
    assert not left.exists()


def test_processes_that_need_it_at_the_same_time_compile_it_once(stand_in: Path, tmp_path: Path) -> None:
    file = library_file(tmp_path / "kernels")
    threads = [threading.Thread(target=compile_library, args=(file,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stand_in.read_text() == "run\n"


def test_other_sources_flags_and_compilers_are_other_libraries(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {library_file(tmp_path).name}
    monkeypatch.setenv("GPTFAST_CPU_ARCH", "x86-64")
    names.add(library_file(tmp_path).name)
    sources = tmp_path / "sources"
    sources.mkdir()
    for source in SOURCES.iterdir():
        (sources / source.name).write_bytes(source.read_bytes() + b"\n")
    names.add(library_file(tmp_path, sources).name)
    Path(os.environ["CXX"]).write_text("#!/bin/sh\n")
    names.add(library_file(tmp_path).name)
    assert len(names) == 4


def test_no_compiler_and_a_compiler_that_fails_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing-here"))
    with pytest.raises(NoCompilerError, match="There is no C\\+\\+ compiler"):
        library_file(tmp_path)
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho 'engine.cpp:1: fatal error: no such header' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    file = library_file(tmp_path / "kernels")
    with pytest.raises(NoCompilerError, match=r"could not compile the CPU engine: engine\.cpp:1: fatal error"):
        compile_library(file)
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "needs"),
    [("x86-64", "sse2"), ("haswell", "avx2"), ("skylake-avx512", "avx512bw"), ("icelake-server", "avx512_vnni")],
)
def test_the_engine_is_right_on_every_path(arch: str, needs: str) -> None:
    if needs not in compiler._processor().split():
        pytest.skip(f"this processor has no {needs}")
    environment = {**os.environ, "GPTFAST_CPU_ARCH": arch}
    tests = [str(Path(__file__).parent / name) for name in ("test_cpu_engine.py", "test_cpu_int8_cache.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


COMPILE = """
import os
from pathlib import Path
from gptfast_cli.core.backends.cpu.compiler import compile_library, is_whole, library_file
compile_library(library_file(Path(os.environ["GPTFAST_KERNELS"])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "runtime", "files", "chosen"),
    [
        (
            "address,undefined",
            "libasan.so",
            ["backends/test_cpu_engine.py", "backends/test_cpu_int8_cache.py", "backends/test_cpu_rounds.py"],
            "references or threads or grows or (batch and int4) or in_one_call or vain",
        ),
        (
            "thread",
            "libtsan.so",
            ["engine/test_ahead.py", "backends/test_cpu_rounds.py", "backends/test_cpu_int8_cache.py"],
            "ahead or lag or in_one_call or threads",
        ),
    ],
)
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str, runtime: str, files: list[str], chosen: str) -> None:
    """The engine's own tests with every access checked; a part of them, since that takes ten times as long."""
    found = subprocess.run(["g++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True)
    wrapper = tmp_path / "c++"
    wrapper.write_text(f'#!/bin/sh\nexec g++ -g -fsanitize={sanitizers} -fno-sanitize-recover=all "$@"\n')
    wrapper.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(wrapper),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        "GPTFAST_KERNELS": str(tmp_path / "kernels"),
    }
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True)  # a compiler bears no sanitizer
    environment["LD_PRELOAD"] = found.stdout.strip()
    tests = [str(Path(__file__).parents[1] / file) for file in files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", chosen],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_the_library_that_is_compiled_loads() -> None:
    file = library_file(Path(os.environ["GPTFAST_KERNELS"]))
    if not is_whole(file):
        compile_library(file)
    assert open_library(file).gptfast_engine_new.restype is not None
