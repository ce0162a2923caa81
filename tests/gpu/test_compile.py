"""On a GPU a compiled decode step is one captured graph: it is replayed, copies nothing, and gives the same tokens."""

from pathlib import Path

import pytest
import torch
from on_gpu import tiny_llama

from gptfast_cli.core.engine.compiled import Compiling, compile_steps
from gptfast_cli.core.engine.runner import Runner
from model_files import drained, settings_in

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")


def greedy(runner: Runner, n_tokens: int) -> list[int]:
    tokens = [int(runner.prefill(0, [1, 5, 9]).best())]
    while len(tokens) < n_tokens:
        tokens.append(int(runner.step([tokens[-1]]).best()[0]))
    return tokens


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("prefill", [False, True])
def test_a_captured_step_gives_the_tokens_of_a_plain_one(
    tmp_path: Path, prefill: bool, kv_dtype: torch.dtype | None
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    model = tiny_llama(kv_dtype=kv_dtype)
    captured = Runner(model, 2)
    drained(
        compile_steps(captured, Compiling(decode=True, prefill=prefill), n_tokens=300, settings=settings_in(tmp_path))
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens = greedy(captured, 150)  # past a block of keys
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert tokens == greedy(Runner(model, 2), 150)


def test_the_logits_of_a_step_outlive_the_next_one(tmp_path: Path) -> None:
    runner = Runner(tiny_llama(), 1)
    drained(compile_steps(runner, Compiling(decode=True), n_tokens=300, settings=settings_in(tmp_path)))
    runner.prefill(0, [1, 5, 9])
    first = runner.step([7]).whole
    kept = first.clone()
    runner.step([8])
    assert torch.equal(first, kept)
