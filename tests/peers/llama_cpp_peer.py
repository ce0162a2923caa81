"""llama.cpp, built on this machine for this machine from the source package of llama-cpp-python, and its benchmark."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfast_cli.core.bench.workload import Case
from gptfast_cli.core.checkpoints.staging import staged_folder

VERSION = "0.3.36"
"""Of llama-cpp-python: it fixes the llama.cpp inside."""

# CMake's own defaults but for these: OpenMP and repacked weights are on, as a person who builds it gets them
_CMAKE = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF")
_TARGETS = ("llama-bench", "llama-quantize")
_SETTINGS = ("build_commit", "backends", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "repack", "load_mode")


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What llama-bench said of one test; `model_bytes` are those of all tensors, `settings` what it ran with."""

    tok_s: float
    model_bytes: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A folder with its source and its build; `prepare` makes what is missing."""

    folder: Path

    @property
    def source(self) -> Path:
        """The llama.cpp inside of the package's source."""
        return self.folder / "source" / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"

    def prepare(self) -> None:
        """Download, unpack, configure and build; raises CalledProcessError where one of them fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.source.exists():
            self._download()
        if not all(self._program(target).exists() for target in _TARGETS):
            build = str(self.folder / "build")
            run_logged(["cmake", "-S", str(self.source), "-B", build, *_CMAKE])
            run_logged(["cmake", "--build", build, "-j", str(os.cpu_count()), "--target", *_TARGETS])

    def quantize(self, gguf: Path, out: Path, kind: str) -> None:
        """A BF16 file to one of another kind, such as Q8_0."""
        partial = out.with_suffix(".partial")
        run_logged([str(self._program("llama-quantize")), str(gguf), str(partial), kind])
        partial.replace(out)

    def bench(self, gguf: Path, case: Case, n_threads: int) -> PeerRun:
        """Time a case once, behind the warm-up that llama-bench does by itself."""
        n_prompt, n_gen = (case.n_tokens, 0) if case.phase == "prefill" else (0, case.n_tokens)
        sizes = ["-p", str(n_prompt), "-n", str(n_gen), "-r", "1", "-t", str(n_threads)]
        command = [str(self._program("llama-bench")), "-m", str(gguf), *sizes, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (record,) = json.loads(done.stdout)
        assert (record["n_prompt"], record["n_gen"], record["n_threads"]) == (n_prompt, n_gen, n_threads)
        return PeerRun(record["avg_ts"], record["model_size"], {name: record[name] for name in _SETTINGS})

    def _program(self, name: str) -> Path:
        return self.folder / "build" / "bin" / name

    def _download(self) -> None:
        requirement = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
        run_logged([sys.executable, "-m", "pip", "download", *requirement, "--dest", str(self.folder)])
        with (
            staged_folder(self.folder / "source", VERSION, replace=True) as staging,
            tarfile.open(self.folder / f"llama_cpp_python-{VERSION}.tar.gz") as archive,
        ):
            archive.extractall(staging, filter="data")


def run_logged(command: list[str]) -> None:
    """Run a command whose output goes to stderr: stdout is for the table."""
    sys.stderr.write(f"+ {' '.join(command)}\n")
    subprocess.run(command, stdout=sys.stderr, check=True)
