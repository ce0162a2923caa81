"""Steps made by torch.compile, ready before the first prompt, so that nothing is compiled while text grows.

A decode step has one shape for a whole run: all rows, free ones too, and the whole cache, whose room is taken at
once. A prefill has one dynamic size, its time. On a CUDA or ROCm device a decode step is captured as a graph of kernels
as well, for which the weights and the cache have to stay where they are.

What is compiled adds up in an order of its own: float32 may differ from the uncompiled in its last bits.
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

from gptfast_cli.core.backends import LayerCache, phase
from gptfast_cli.core.engine.runner import Forward, Runner
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import private_folder
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

_GRAPH_WARM_UPS = 3  # CUDA graphs: one to run, one to record, one to replay

_MOST_SHAPES = 64  # that one process compiles a step for: each runner is a shape of its own, and the usual limit is 8

_LEAVE_OUT = "Leave out --compile."

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Compiling:
    """Which steps to compile; `backend` is a name or a function, as torch.compile takes it."""

    decode: bool = False
    prefill: bool = False
    backend: str | Callable[..., Any] = "inductor"


def compile_steps(runner: Runner, compiling: Compiling, *, n_tokens: int, settings: Settings) -> Job[float | None]:
    """Compile steps of a runner whose rows will hold up to `n_tokens`; returns the seconds, None where none is asked.

    The compiler keeps its work in the folder of compiled code, for later runs. Raises GptFastError where it
    cannot do it, as without a C++ compiler, UsageError for a model that is not made of PyTorch's operations.
    """
    if not (compiling.decode or compiling.prefill):
        return None
    model = runner.model
    if not isinstance(model, Transformer):
        raise UsageError("--compile compiles PyTorch's operations, and the CPU engine is not made of them.", _LEAVE_OUT)
    if _CACHE_VARIABLE not in os.environ:
        folder, remark = private_folder(settings.kernel_cache)
        if remark:
            yield Note(remark)
        os.environ[_CACHE_VARIABLE] = str(folder)  # read when the compiler is loaded: now
    from torch._dynamo import mark_static_address  # noqa: PLC0415  # it takes seconds, for those who compile

    yield Progress("compile", 0, None, "tokens")
    watch = Stopwatch(runner.model.device)
    with watch, phase("compile"), _failure_named(), warnings.catch_warnings(), _many_shapes():
        warnings.simplefilter("ignore")  # the compiler's own, about its own insides
        runner.prepare(
            n_tokens,
            prefill=_prefill(model, compiling.backend) if compiling.prefill else None,
            decode=_decode(model, compiling.backend) if compiling.decode else None,
        )
        for tensor in (*model.tensors(), *runner.tensors()):  # or a captured graph would begin by copying all of them
            mark_static_address(tensor)
        for _ in range(_GRAPH_WARM_UPS if _captures(model) else 1):
            runner.warm_up()
    return watch.seconds


def _decode(model: Transformer, backend: str | Callable[..., Any]) -> Forward:
    if not _captures(model) or backend != "inductor":
        return fixed_step(model, torch.compile(model.next_logits, fullgraph=True, dynamic=False, backend=backend))
    # multiplying and adding up in one kernel of its own, where the vendor's is slow: at a single row
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": True,
    }
    forward = torch.compile(model.next_logits, fullgraph=True, dynamic=False, options=options)

    def replay(tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return forward(tokens, positions, layers).clone()  # the next replay overwrites the graph's own memory

    return fixed_step(model, replay)


def _prefill(model: Transformer, backend: str | Callable[..., Any]) -> Forward:
    from torch._dynamo import mark_dynamic  # noqa: PLC0415

    forward = torch.compile(model.next_logits, fullgraph=True, backend=backend)

    def of_any_length(tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        for tensor in (tokens, positions):  # [1, time]
            mark_dynamic(tensor, 1)
        return forward(tokens, positions, layers)

    return fixed_step(model, of_any_length)


def fixed_step(model: Transformer, forward: Callable[[Tensor, Tensor, Sequence[LayerCache]], Tensor]) -> Forward:
    """A step that is given the whole length of the cache, and the very same tensors of it for all rows."""

    def run(tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        is_whole = len(tokens) == cache.n_rows
        layers = cache.whole() if is_whole else cache.layers(rows=rows, n_keys=cache.capacity)
        with model.group.guarded():
            return forward(*model.inputs(tokens, cache, rows), layers)

    return Forward(run, is_fixed=True)


def _captures(model: Transformer) -> bool:
    """Whether a step can be captured as a graph of kernels; PyTorch calls ROCm devices cuda too."""
    return model.device.type == "cuda"


def _many_shapes() -> AbstractContextManager[None]:
    from torch._dynamo import config  # noqa: PLC0415

    return config.patch(recompile_limit=_MOST_SHAPES)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _failure_named() -> Iterator[None]:
    """Turn what torch.compile raises into GptFastError; its own message takes a screen."""
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
