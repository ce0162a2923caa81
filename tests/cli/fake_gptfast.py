"""`gptfast` with a make-believe generation behind it: `python fake_gptfast.py SCENARIO ARGUMENTS...`.

The modules that load PyTorch are replaced before anything imports them, so that a test of what a person sees takes a
fraction of a second and the job does exactly what the test needs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from gptfast_cli.app import main
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions, parse_draft_length
from gptfast_cli.core.errors import NotFoundError
from gptfast_cli.core.events import Finished, Job, Measured, Note, Progress, Prompt, TextChunk

PIECES = ("A small", " fox\tran", " home.\n", "It was ", "wärm\x1b[31m", " there")


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    device: str
    dtype: str | None
    threads: int | None
    backend: str | None
    activations: str | None
    max_context: int | None
    verify: bool
    kv_dtype: str
    group: object  # which is not a thing to be reported


@dataclass(frozen=True, slots=True)
class Compiling:
    decode: bool
    prefill: bool


@dataclass(frozen=True, slots=True)
class ChatOptions:
    chat: bool | None
    system: str | None
    template: str | None
    variables: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    num_samples: int
    n_logprobs: int | None
    seed: int | None
    max_context: int | None
    batch_size: int | None
    chat: ChatOptions
    drafting: DraftOptions | None
    compiling: Compiling
    unset: frozenset[str]


def thinking_variables(*, think: bool) -> dict[str, Any]:
    return {"enable_thinking": think}


class GenerateRequest:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


@dataclass(frozen=True, slots=True)
class Sample:
    id: int
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    content: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    prefill_tok_s: float | None = 1520.123
    ttft_s: float | None = 0.0123
    decode_tok_s: float | None = 812.345
    aggregate_tok_s: float | None = 1624.69
    tpot_p50_s: float | None = 0.00123
    tpot_p95_s: float | None = 0.00160
    decode_gbps: float | None = 5.21
    mbu: float | None = None
    peak_memory_bytes: int = 310_000_000
    load_s: float = 0.12
    compile_s: float | None = None


@dataclass(frozen=True, slots=True)
class Acceptance:
    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    draft: str = "tiny-draft"
    k: int | None = 5
    rounds: int = 40
    alpha: float | None = 0.912
    tau: float | None = 3.25
    accepted_histogram: tuple[int, ...] = (10, 0, 10, 0, 0, 20)
    shares: dict[str, float] = field(
        default_factory=lambda: {"draft": 0.3, "verify": 0.5, "sample": 0.15, "host": 0.05}
    )
    acceptance: tuple[Acceptance, ...] = (Acceptance(0.75, 0.75), Acceptance(0.667, 0.5), Acceptance(None, 0.0))
    replicated: bool = False
    draft_load_s: float = 0.04


@dataclass(frozen=True, slots=True)
class GenerateResult:
    model: str
    seed: int
    samples: tuple[Sample, ...]
    metrics: Metrics
    speculation: SpeculationReport | None = None
    ranks: None = None


def finished(request: GenerateRequest, finish_reason: str = "length", n_pieces: int = len(PIECES)) -> GenerateResult:
    text = "".join(PIECES[:n_pieces])
    ids = tuple(range(n_pieces))
    samples = tuple(Sample(i, text, ids, 4, finish_reason) for i in range(request.options.num_samples))
    return GenerateResult("tiny", 42, samples, Metrics(), SpeculationReport() if request.options.drafting else None)


def streams(request: GenerateRequest) -> Job[GenerateResult]:
    """All samples of a batch side by side, one piece of each at a time."""
    yield Note("model: tiny (bundled)")
    yield Progress("loading", 10, 10, "bytes")
    yield Prompt(str(request.prompt), continues=request.options.chat.chat is not True)
    yield Measured("prefill", 4, 0.01)
    batch_size = request.options.batch_size or request.options.num_samples
    for first in range(0, request.options.num_samples, batch_size):
        for piece in PIECES:
            for sample in range(first, min(first + batch_size, request.options.num_samples)):
                yield TextChunk(sample, piece)
            yield Measured("decode", batch_size, 0.001, n_sequences=batch_size)
            time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
        for sample in range(first, min(first + batch_size, request.options.num_samples)):
            yield Finished(sample)
    return finished(request)


def thinks(request: GenerateRequest) -> Job[GenerateResult]:
    """Two samples, one after the other, whose reasoning comes before their answers."""
    for sample in reversed(range(request.options.num_samples)):
        yield TextChunk(sample, "<think>wh", is_reasoning=True)
        yield TextChunk(sample, "y</think>", is_reasoning=True)
        yield TextChunk(sample, "so")
        yield Finished(sample)
    result = finished(request)
    return replace(result, samples=tuple(replace(each, content="so", reasoning="why") for each in result.samples))


def waits_for_interrupt(request: GenerateRequest) -> Job[GenerateResult]:
    """Stops for Ctrl-C as the real job does, keeping what it has."""
    n_pieces = 0
    try:
        for piece in PIECES[:3]:
            yield TextChunk(0, piece)
            n_pieces += 1
        time.sleep(30)
    except KeyboardInterrupt:
        return finished(request, "interrupted", n_pieces)
    return finished(request)


def waits_for_termination(request: GenerateRequest) -> Job[GenerateResult]:
    """Has a partial output that must be gone after SIGTERM."""
    partial = Path(os.environ["FAKE_PARTIAL"])
    partial.write_text("half")
    try:
        yield TextChunk(0, PIECES[0])
        time.sleep(30)
    finally:
        partial.unlink()
    return finished(request)


def streams_for_ever(request: GenerateRequest) -> Job[GenerateResult]:
    while True:
        yield TextChunk(0, "and on ")


def _as_json(field: Any) -> Any:
    if not is_dataclass(field):
        return str(field)
    return {name: value for name, value in asdict(field).items() if name != "together"}


def echoes_the_request(request: GenerateRequest) -> Job[GenerateResult]:
    """Generates the request, as JSON; its options stand beside its other fields."""
    options = {each.name: getattr(request.options, each.name) for each in fields(request.options)}
    others = {name: value for name, value in vars(request).items() if name != "options"}
    yield TextChunk(0, json.dumps(others | options, default=_as_json))
    return finished(request)


def fails_with(error: Exception) -> Callable[[GenerateRequest], Job[GenerateResult]]:
    def fails(request: GenerateRequest) -> Job[GenerateResult]:
        yield TextChunk(0, "Once")
        raise error

    return fails


SCENARIOS: dict[str, Callable[[GenerateRequest], Job[GenerateResult]]] = {
    "streams": streams,
    "thinks": thinks,
    "waits-for-interrupt": waits_for_interrupt,
    "waits-for-termination": waits_for_termination,
    "echoes-the-request": echoes_the_request,
    "streams-for-ever": streams_for_ever,
    "no-such-model": fails_with(NotFoundError("There is no model 'no/such'.\nNot here.\nNot there.", "gptfast --list")),
    "wordy": fails_with(NotFoundError("\n".join("abcdefgh"), "first\nsecond\nthird")),
    "memory": fails_with(MemoryError()),
    "torch-memory": fails_with(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes")),
    "disk": fails_with(OSError(28, "No space left on device", "/out/shard")),
    "denied": fails_with(PermissionError(13, "Permission denied", "/out")),
    "fault": fails_with(ZeroDivisionError("division by zero\nsecond line")),
    "escape": fails_with(NotFoundError("There is no model '\x1b[31mred'.")),
}


def replace_modules(run: Callable[[GenerateRequest], Job[GenerateResult]]) -> None:
    fakes = {
        "jobs.generate": (GenerateRequest, GenerateResult, Metrics, run),
        "bench": (),
        "bench.throughput": (Metrics, SpeculationReport),
        "engine": (),
        "engine.compiled": (Compiling,),
        "engine.speculative.draft_length": (DraftOptions, parse_draft_length),
        "engine.build": (RuntimeConfig,),
        "engine.chat": (ChatOptions, thinking_variables),
        "engine.options": (GenerationOptions,),
        "engine.sampling": (Sampling,),
    }
    for name, contents in fakes.items():
        module = ModuleType(f"gptfast_cli.core.{name}")
        vars(module).update({content.__name__: content for content in contents})
        sys.modules[module.__name__] = module
    sys.modules["gptfast_cli.core.engine.options"].MODEL_DEFAULTS = frozenset()  # type: ignore[attr-defined]
    sys.modules["gptfast_cli.core.jobs.generate"].run = run  # type: ignore[attr-defined]


if __name__ == "__main__":
    replace_modules(SCENARIOS[sys.argv.pop(1)])
    main()
