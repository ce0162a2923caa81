"""Compares decoding and prompt processing on this CPU with llama.cpp's, on the same random weights, pair by pair.

    PYTHONPATH=.:tests python tests/peers/compare.py --work FOLDER [--shape SHAPE|all] [--pairs 5] [--minutes 12]

Shapes are those of peer_models.py. The peer is built from source, models are made, and both stay in the folder: a
second run goes straight to the pairs. `--build` stops before them, `--precision bf16|int8|int4` takes one of three. It
needs cmake, a C++ compiler and the dev extra. The table goes to stdout, the record with every pair to
FOLDER/compare-SHAPE-PRECISION.json; the exit code is 1 where a row has fewer pairs that count than were wanted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gptfast_side import load_ours, read_bandwidth
from llama_cpp_peer import VERSION, LlamaCpp
from paired_runs import Sides, collect
from peer_models import PRECISIONS, SHAPES, Models, prepare, unread_elements
from peer_table import Circumstances, Line, document, markdown
from shared_machine import Machine, others_cpu_s

from gptfast_cli.core.bench.environment import environment
from gptfast_cli.core.bench.workload import Case
from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.files import write_whole

CASES = (Case("decode", 200, 0, 1), Case("prefill", 512, 0, 1))
SHORTEST = Case("decode", 1, 0, 1)


@dataclass(frozen=True, slots=True)
class Subject:
    """One model, by the names of its shape and precision, on both sides."""

    shape: str
    precision: str
    models: Models


@dataclass(frozen=True, slots=True)
class Bench:
    """How models are measured, and with what."""

    peer: LlamaCpp
    machine: Machine
    n_pairs: int
    n_threads: int

    def lines(self, subjects: Sequence[Subject], seconds: float) -> list[Line]:
        """The lines of all subjects, one after the other in memory; what one leaves of its time goes to the others."""
        lines: list[Line] = []
        end = time.monotonic() + seconds
        for index, subject in enumerate(subjects):
            now = time.monotonic()
            lines += self._lines_of(subject, now + (end - now) / (len(subjects) - index))
        return lines

    def _lines_of(self, subject: Subject, end: float) -> list[Line]:
        model, precision = subject.models, PRECISIONS[subject.precision]
        file_bytes = self.peer.bench(model.gguf, SHORTEST, self.n_threads).model_bytes  # it is in memory from here on
        ours = load_ours(model.ours, self.n_threads)

        def sides(case: Case) -> Sides:
            return Sides(lambda: self.peer.bench(model.gguf, case, self.n_threads).tok_s, ours.timed(case))

        rows = {case: sides(case) for case in CASES}
        found = collect(rows, self.machine, n_wanted=self.n_pairs, is_over=lambda: time.monotonic() > end)
        peer_bytes = file_bytes - round(unread_elements(SHAPES[subject.shape]) * precision.peer_bits / 8)
        kinds = subject.shape, precision.peer, precision.ours
        return [Line(*kinds, case.name, peer_bytes, ours.step_bytes, found[case]) for case in CASES]


def main() -> int:
    given = _arguments()
    work = given.work.resolve()
    os.environ["GPTFAST_HOME"] = str(work / "home")  # of the commands started here too: no one's own store is touched
    peer = LlamaCpp(work / f"llama-cpp-python-{VERSION}")
    peer.prepare()
    shapes = list(SHAPES) if given.shape == "all" else [given.shape]
    precisions = list(PRECISIONS) if given.precision == "all" else [given.precision]
    models = {shape: prepare(work, shape, peer) for shape in shapes}
    if given.build:
        return 0
    subjects = [Subject(shape, name, models[shape][name]) for shape in shapes for name in precisions]
    machine = Machine(read_bandwidth(), others_cpu_s, os.cpu_count() or 1)
    lines = Bench(peer, machine, given.pairs, given.threads).lines(subjects, given.minutes * 60)
    around = _circumstances(given, peer.bench(subjects[0].models.gguf, SHORTEST, given.threads).settings)
    record = json.dumps(document(lines, around), indent=1, allow_nan=False) + "\n"
    write_whole(work / f"compare-{given.shape}-{given.precision}.json", record)
    sys.stdout.write(markdown(lines, around))
    return 0 if all(len(line.pairs.accepted) >= given.pairs for line in lines) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that everything is kept in")
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--precision", choices=[*PRECISIONS, "all"], default="all")
    parser.add_argument("--pairs", type=int, default=5, help="pairs that count, for each row")
    parser.add_argument("--minutes", type=float, default=12, help="of measuring at most")
    parser.add_argument("--threads", type=int, default=computing_cpus())
    parser.add_argument("--build", action="store_true", help="make everything ready and measure nothing")
    return parser.parse_args()


def _circumstances(given: argparse.Namespace, peer_settings: dict[str, Any]) -> Circumstances:
    around = environment(torch.device("cpu"), torch.bfloat16)
    names = "shape", "precision", "pairs", "minutes", "threads"
    options = " ".join(f"--{name} {getattr(given, name)}" for name in names)
    compiler = subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=True)
    return Circumstances(
        command=f"PYTHONPATH=.:tests python tests/peers/compare.py --work FOLDER {options}",
        cpu=around.cpu,
        n_threads=given.threads,
        instruction_sets=around.instruction_sets,
        os=around.os,
        python=around.python,
        torch=around.torch,
        gptfast=around.gptfast,
        commit=around.commit,
        peer=f"llama-cpp-python {VERSION}",
        peer_settings=peer_settings,
        compiler=compiler.stdout.splitlines()[0],
        date=around.date,
    )


if __name__ == "__main__":
    sys.exit(main())
