"""`gptfast generate --prompts-file` with a make-believe model: `python fake_batch.py ARGUMENTS...`.

Rows are "answered" out of order and a little late, and where they go is the real thing: what is tested with it is the
output, its views, and how a run ends. FAKE_ROWS says how many rows there are, FAKE_DELAY how many seconds each takes,
FAKE_BAD which line is bad, FAKE_STUCK which one is never over.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fake_gptfast import (
    ChatOptions,
    Compiling,
    GenerationOptions,
    Metrics,
    RuntimeConfig,
    Sampling,
    SpeculationReport,
    thinking_variables,
)

from gptfast_cli import core
from gptfast_cli.app import main
from gptfast_cli.core.events import Event, Job, Measured, Note, Progress, Record

N_ROWS = int(os.environ.get("FAKE_ROWS", "12"))
DELAY_SECONDS = float(os.environ.get("FAKE_DELAY", "0"))
BAD, STUCK = (int(os.environ.get(name, "0")) for name in ("FAKE_BAD", "FAKE_STUCK"))
PLACES = 4
METRICS = Metrics(compile_s=4.2)
DECODE = Path(core.__file__).parent / "engine"


class BatchRequest:
    def __init__(self, **fields: Any) -> None:
        self.output: Path | None = None
        self.in_order = True
        self.__dict__.update(fields)


@dataclass(frozen=True, slots=True)
class BatchResult:
    n_rows: int
    n_done: int
    n_found: int
    n_bad: int
    n_prompt_tokens: int
    n_tokens: int
    seed: int
    seconds: float
    metrics: Metrics | None
    is_interrupted: bool
    speculation: SpeculationReport | None = None


def run(request: BatchRequest) -> Job[BatchResult]:
    from gptfast_cli.core.batch.output import open_output

    yield Note("Model: tiny (bundled)")
    identities = {line: f"identity {line}" for line in range(1, N_ROWS + 1)}
    is_interrupted = False
    with open_output(request.output, identities, in_order=request.in_order) as output:
        done = len(output.found)
        yield Progress("generate", done, N_ROWS, "rows")
        try:
            for line in finishing(line for line in identities if line not in output.found):
                yield from decode(line)
                if line == BAD:
                    yield Note(f"x.jsonl:{line}: nope: unknown field")
                yield from output.put(record(line))
                done += 1
                yield Progress("generate", done, N_ROWS, "rows")
        except KeyboardInterrupt:
            is_interrupted = True
            yield from output.unsaved()
    return BatchResult(
        N_ROWS, done, len(output.found), int(BAD > 0), 4 * done, 30 * done, 42, 1.5, METRICS, is_interrupted
    )


def finishing(lines: Iterator[int]) -> Iterator[int]:
    """The order in which rows finish that are decoded a few at a time: the last of those under way is the first."""
    under_way: list[int] = []
    for line in lines:
        under_way.append(line)
        if len(under_way) == PLACES:
            yield under_way.pop(line % PLACES)
    yield from reversed(under_way)


def decode(line: int) -> Iterator[Event]:
    while True:
        time.sleep(0.01 if line == STUCK else DELAY_SECONDS)
        yield Measured("decode", PLACES, 0.01, n_sequences=PLACES)
        if line != STUCK:
            return


def record(line: int) -> Record:
    answer = {"text": "wärm\x1b[31m " * (line % 7), "token_ids": [line]}
    reported = {"error": {"message": "nope"}} if line == BAD else answer
    return Record({"id": line, "line": line, **reported, "seed": 42, "request": f"identity {line}"})


def check(sampling: Sampling) -> None:
    """Every sampling option is fine."""


def replace_modules() -> None:
    fakes: dict[str, tuple[Any, ...]] = {
        "jobs.generate_batch": (BatchRequest, BatchResult, run),
        "bench": (),
        "bench.throughput": (Metrics, SpeculationReport),
        "engine": (),
        "engine.compiled": (Compiling,),
        "engine.build": (RuntimeConfig,),
        "engine.chat": (ChatOptions, thinking_variables),
        "engine.sampling": (Sampling, check),
        "engine.options": (GenerationOptions,),
    }
    for name, contents in fakes.items():
        module = ModuleType(f"gptfast_cli.core.{name}")
        vars(module).update({content.__name__: content for content in contents})
        sys.modules[module.__name__] = module
    vars(sys.modules["gptfast_cli.core.engine.options"]).update(
        LARGEST_SEED=2**64 - 1, MOST_SAMPLES=1, MODEL_DEFAULTS=frozenset()
    )
    sys.modules["gptfast_cli.core.engine"].__path__ = [str(DECODE)]  # what loads no PyTorch is the real thing


if __name__ == "__main__":
    replace_modules()
    main()
