"""What windows of attention save: cache and decode step of a 5:1 model, beside the same shape without windows.

    PYTHONPATH=. python tests/speed/windows.py [--backend cpu,reference] [--dtype bfloat16] [--kv-dtype auto]
                                               [--windows 512,1024] [--context 8192] [--steps 16] [--pairs 9]

Five of six layers have a window. Each number is a median of runs that take turns, a ratio one of pairs; `bytes` is the
ratio of what the two shapes read in a step by the program's own count, weights included, and so the time that windows
should take. `planned` is the cache that `gptfast bench --plan` predicts.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from itertools import product

import torch

from gptfast_cli.core.bench.environment import environment
from gptfast_cli.core.bench.plan import ModelOutline, portion
from gptfast_cli.core.config import LayerSpec, ModelConfig
from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import load_random
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.shapes import read_shape
from gptfast_cli.core.events import result_of
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import load_settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.render.numbers import machine_line

SHAPE = "layers=6,dim=512,heads=8,kv_heads=8,ffn=1536,vocab=4096,context=16384"
HEAD = """\
| backend | window | cache, MB: without / with windows / planned | ms a step: without / with | ratio | of bytes |
|---|---|---|---|---|---|
"""
_PLAIN = AllocationOptions("plain")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu,reference")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--windows", default="512,1024")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    sys.stdout.write(HEAD)
    names = [option.split(",") for option in (given.backend, given.dtype, given.kv_dtype)]
    windows = [int(window) for window in given.windows.split(",")]
    for backend, dtype, kv_dtype in product(*names):
        runtime = RuntimeConfig(device="cpu", dtype=dtype, kv_dtype=kv_dtype, backend=backend, threads=computing_cpus())
        for window in windows:
            compare(runtime, window, given.context, given.steps, given.pairs)
    about = environment(torch.device("cpu"), getattr(torch, given.dtype.partition(",")[0]), given.backend, 1)
    sys.stdout.write(f"\n{machine_line(about)}\n")
    return 0


def compare(runtime: RuntimeConfig, window: int, context: int, n_steps: int, n_pairs: int) -> None:
    """Measure both shapes, and print a line."""
    everything = read_shape(SHAPE)
    shapes = [everything, replace(everything, config=with_windows(everything.config, window))]
    runners = [filled(runtime, shape.config, context) for shape in shapes]
    (whole, narrow), ratios, bytes_ratios = ([], []), [], []
    for pair in range(n_pairs + 1):
        seconds = [stepped(runner, n_steps) for runner in runners]
        if pair == 0:  # a warm-up
            continue
        whole.append(seconds[0] / n_steps)
        narrow.append(seconds[1] / n_steps)
        ratios.append(seconds[1] / seconds[0])
        n_bytes = [runner.bytes_of_last_steps(1, n_steps) for runner in runners]
        bytes_ratios.append(n_bytes[1] / n_bytes[0])
    model = runners[1].model
    outline = ModelOutline(model.config, _PLAIN.allocation(model.config).of(model.config), model.dtype, model.kv_dtype)
    planned = portion(outline, 1).kv_bytes(1, runners[1].n_held(0))
    cache_mb = (runners[0].cache_bytes / 1e6, runners[1].cache_bytes / 1e6, planned / 1e6)
    step_ms = (1e3 * statistics.median(whole), 1e3 * statistics.median(narrow))
    cells = (
        f"{model.backend}, {runtime.dtype}" + ("" if runtime.kv_dtype == "auto" else f", {runtime.kv_dtype} keys"),
        f"{window:,}",
        " / ".join(f"{each:.1f}" for each in cache_mb),
        " / ".join(f"{each:.2f}" for each in step_ms),
        f"{statistics.median(ratios):.3f} [{min(ratios):.3f}..{max(ratios):.3f}]",
        f"{statistics.median(bytes_ratios):.3f}",
    )
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def with_windows(config: ModelConfig, window: int) -> ModelConfig:
    """The shape with a window in five of six layers."""

    def narrow(layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=replace(layer.attention, window=window))

    layers = tuple(layer if number % 6 == 5 else narrow(layer) for number, layer in enumerate(config.layers))
    return replace(config, layers=layers)


def filled(runtime: RuntimeConfig, config: ModelConfig, context: int) -> Runner:
    """A runner whose only row holds so many tokens."""
    shape = replace(read_shape(SHAPE), config=config)
    loaded = result_of(load_random(shape, _PLAIN, runtime, seed=0, settings=load_settings(), torch_backend=None))
    runner = Runner(loaded.model, 1)
    text = torch.randint(config.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    for first in range(0, context, PREFILL_CHUNK):
        runner.prefill(0, text[first : first + PREFILL_CHUNK])
    return runner


def stepped(runner: Runner, n_steps: int) -> float:
    """Seconds of so many decode steps."""
    watch = Stopwatch(runner.model.device)
    with watch:
        for token in range(n_steps):
            runner.step([token])
    return watch.seconds


if __name__ == "__main__":
    sys.exit(main())
