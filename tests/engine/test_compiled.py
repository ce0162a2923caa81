"""Compiled steps give the tokens of uncompiled ones, and nothing is compiled anew while text grows."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func

from gptfast_cli.core.bench.throughput import Timings
from gptfast_cli.core.engine.compiled import Compiling, compile_steps
from gptfast_cli.core.engine.engine import Engine, PrefillOutput
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import ours, random_llama
from model_files import drained, run_to_end, settings_in
from windowed_models import windowed

GREEDY = Sampling(temperature=0)
PROMPTS = ((1, 5, 9), tuple(range(100)) * 2 + tuple(range(50)), (1, 5, 9, 11, 12), (80,), (1, 5, 9), tuple(range(41)))
N_TOKENS = 300  # the second prompt grows past the 256 tokens of a bucket


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module", params=["llama", "windows of 40 and 200"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return ours(random_llama(num_hidden_layers=2)) if request.param == "llama" else windowed()


def compiled_runner(model: Transformer, n_rows: int, *, prefill: bool = False, backend: str = "eager") -> Runner:
    runner = Runner(model, n_rows)
    compiling = Compiling(decode=True, prefill=prefill, backend=backend)
    drained(compile_steps(runner, compiling, n_tokens=N_TOKENS, settings=settings_in(Path("unused"))))
    return runner


def generated(runner: Runner, *, n_new: int = 12) -> list[list[int]]:
    """Tokens of every prompt, as many at once as there are rows; each ends after a number of tokens of its own."""
    sequences = [
        Request(n, prompt, Sampler(GREEDY, seed=0), Limits(n_new + n, N_TOKENS, frozenset()))
        for n, prompt in enumerate(PROMPTS)
    ]
    run_to_end(Engine(runner), sequences)
    return [sequence.generated for sequence in sequences]


@pytest.mark.parametrize(("n_rows", "prefill"), [(1, True), (4, False)])
def test_nothing_is_compiled_after_the_warm_up(model: Transformer, n_rows: int, prefill: bool) -> None:
    runner = compiled_runner(model, n_rows, prefill=prefill)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1 + prefill
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens = generated(runner)
    assert counters["stats"]["unique_graphs"] == graphs
    assert tokens == generated(Runner(model, n_rows))


def test_more_runners_are_compiled_than_the_compiler_usually_allows() -> None:
    model = ours(random_llama(num_hidden_layers=1))
    runners = [compiled_runner(model, n_rows) for n_rows in range(1, 11)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for runner in runners:
            torch.testing.assert_close(runner.step([5]).whole, Runner(model, 1).step([5]).whole)


def test_all_that_steps_share_stays_where_it_is_for_a_captured_graph(model: Transformer) -> None:
    moving: list[list[tuple[int, ...]]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        context = torch._guards.TracingContext.get()
        static = context.fw_metadata.static_input_indices
        moving.append([tuple(tensor.shape) for n, tensor in enumerate(inputs) if n not in static])
        return make_boxed_func(graph.forward)

    runner = Runner(model, 3)
    compiling = Compiling(decode=True, prefill=False, backend=aot_autograd(fw_compiler=compiler))
    drained(compile_steps(runner, compiling, n_tokens=N_TOKENS, settings=settings_in(Path("unused"))))
    assert moving == [[(3, 1), (3, 1)]]  # the tokens and their positions


def test_the_time_that_it_took_stands_for_itself(model: Transformer) -> None:
    runner = Runner(model, 1)
    compiling = Compiling(decode=True, prefill=False, backend="eager")
    events, seconds = drained(compile_steps(runner, compiling, n_tokens=N_TOKENS, settings=settings_in(Path("unused"))))
    assert events == [Progress("compile", 0, None, "tokens")]
    timings = Timings(compile_seconds=seconds)
    timings.add_prefill(PrefillOutput(n_fed=1, n_reused=0, prefill_seconds=0.5, first_token_seconds=0.125))
    metrics = timings.metrics(load_seconds=0, peak_memory_bytes=0)
    assert metrics.compile_s == seconds > 0
    assert metrics.ttft_s == 0.625


def test_without_a_cpp_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(GptFastError, match=r"C\+\+ compiler") as caught:
        compiled_runner(ours(random_llama(num_hidden_layers=1)), 1, backend="inductor")
    assert "g++" in caught.value.hint
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("prefill", [False, True])
def test_the_real_compiler_gives_the_same_tokens_in_float32(model: Transformer, prefill: bool) -> None:
    runner = compiled_runner(model, 3, prefill=prefill, backend="inductor")
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens = generated(runner)
    assert tokens == generated(Runner(model, 3))


TWO_TOKENS = """
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.options import GenerationOptions
from gptfast_cli.core.jobs.generate import GenerateRequest, run
from gptfast_cli.core.settings import load_settings
compiling = Compiling(decode=True)
runtime = RuntimeConfig(backend="reference")
options = GenerationOptions(max_new_tokens=2, compiling=compiling)
for _ in run(GenerateRequest((1, 2, 3), load_settings(), model="tiny", runtime=runtime, options=options)):
    pass
from torch._dynamo.utils import counters
print(counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_run(tmp_path: Path) -> None:
    environment = {**os.environ, "GPTFAST_KERNELS": str(tmp_path / "kernels")}
    del environment["TORCHINDUCTOR_CACHE_DIR"]
    command = [sys.executable, "-c", TWO_TOKENS]
    runs = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    assert [(run.stdout, run.stderr) for run in runs] == [("0\n", ""), ("1\n", "")]
    assert any((tmp_path / "kernels").iterdir())
