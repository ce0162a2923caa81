"""Forward passes compiled by torch.compile before the first prompt, so that nothing is compiled during decoding.

A decode step has one shape in a run: all rows, free ones too, and the whole cache, which is reserved at once. Prefill
has one dynamic size, the number of tokens. On CUDA and ROCm a decode step is also captured as a CUDA graph, for which
the addresses of weights and cache must not change.

Compiled sums are in another order: float32 logits may differ in their last bits.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import LayerCache, phase
from gptfast_cli.core.engine.runner import Forward, Runner
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import private_folder
from gptfast_cli.core.models.decoder import CompilableDecoder
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

_GRAPH_WARM_UPS = 3  # of a CUDA graph: run, record, replay

_MOST_SHAPES = 64  # in one process, one for each runner; the default limit is 8

_LEAVE_OUT = "Leave out --compile."

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Compiling:
    """Which forward passes to compile; `backend`: as in torch.compile."""

    decode: bool = False
    prefill: bool = False
    backend: str | Callable[..., Any] = "inductor"


def compile_steps(runner: Runner, compiling: Compiling, *, n_tokens: int, settings: Settings) -> Job[float | None]:
    """Compile forward passes of a runner with rows of up to `n_tokens`; returns the seconds, None: nothing to compile.

    Compiled code is cached in the folder of kernels. Raises GptFastError if compilation fails, as without a C++
    compiler, and UsageError for a model that does not consist of PyTorch operations.
    """
    if not (compiling.decode or compiling.prefill):
        return None
    model = runner.model.compilable
    if model is None:
        raise UsageError("--compile compiles PyTorch's operations, and the CPU engine is not made of them.", _LEAVE_OUT)
    if _CACHE_VARIABLE not in os.environ:
        folder, remark = private_folder(settings.kernel_cache)
        if remark:
            yield Note(remark)
        os.environ[_CACHE_VARIABLE] = str(folder)  # read at the import of the compiler, below
    from torch._dynamo import mark_static_address  # noqa: PLC0415  # takes seconds

    yield Progress("compile", 0, None, "tokens")
    watch = Stopwatch(runner.model.device)
    with watch, phase("compile"), _failure_named(), warnings.catch_warnings(), _many_shapes():
        warnings.simplefilter("ignore")  # of the compiler about itself
        runner.prepare(
            n_tokens,
            prefill=_prefill(model, compiling.backend) if compiling.prefill else None,
            decode=_decode(model, compiling.backend) if compiling.decode else None,
        )
        for tensor in (*model.tensors(), *runner.tensors()):  # else a captured graph copies all of them first
            mark_static_address(tensor)
        for _ in range(_GRAPH_WARM_UPS if _captures(model) else 1):
            runner.warm_up()
    return watch.seconds


def _decode(model: CompilableDecoder, backend: str | Callable[..., Any]) -> Forward:
    if not _captures(model) or backend != "inductor":
        return fixed_step(model, torch.compile(model.next_logits, fullgraph=True, dynamic=False, backend=backend))
    # fuses matrix-vector products, for which the vendor's kernels are slow
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": True,
    }
    forward = torch.compile(model.next_logits, fullgraph=True, dynamic=False, options=options)

    def replay(tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return forward(tokens, positions, layers).clone()  # the next replay overwrites the graph's output

    return fixed_step(model, replay)


def _prefill(model: CompilableDecoder, backend: str | Callable[..., Any]) -> Forward:
    from torch._dynamo import mark_dynamic  # noqa: PLC0415

    forward = torch.compile(model.next_logits, fullgraph=True, backend=backend)

    def of_any_length(tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        for tensor in (tokens, positions):  # [1, time]
            mark_dynamic(tensor, 1)
        return forward(tokens, positions, layers)

    return fixed_step(model, of_any_length)


def fixed_step(model: CompilableDecoder, forward: Callable[[Tensor, Tensor, Sequence[LayerCache]], Tensor]) -> Forward:
    """A forward pass over the whole capacity of the cache; with all rows its tensors are the same each time."""

    def run(tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        cache.begin(rows, [len(row) for row in tokens])
        n_new = len(tokens[0])
        is_whole = len(tokens) == cache.n_rows and n_new == 1
        layers = cache.whole() if is_whole else cache.layers(rows, cache.lengths[rows], n_new, is_fixed=True)
        with model.group.guarded():
            return forward(*model.inputs(tokens, cache, rows), layers)

    return Forward(run, is_fixed=True)


def _captures(model: CompilableDecoder) -> bool:
    """Whether a step can be captured as a CUDA graph; ROCm devices are of type cuda too."""
    return model.device.type == "cuda"


def _many_shapes() -> AbstractContextManager[None]:
    from torch._dynamo import config  # noqa: PLC0415

    return config.patch(recompile_limit=_MOST_SHAPES)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _failure_named() -> Iterator[None]:
    """Turn exceptions of torch.compile, which fill a screen, into GptFastError."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        if type(cause).__name__ in ("InvalidCxxCompiler", "CppCompileError"):
            raise GptFastError(
                "--compile needs a working C++ compiler, and found none.",
                "Install g++ (Debian: apt-get install g++ python3-dev), or leave out --compile.",
            ) from error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise GptFastError(f"The model could not be compiled: {reason}", _LEAVE_OUT) from error
