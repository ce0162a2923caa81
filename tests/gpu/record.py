"""Records on a GPU what only a GPU can show: that its numbers are right, and how fast it is, part by part as JSON.

    PYTHONPATH=. python tests/gpu/record.py --out FOLDER [--part NAME] [--minutes 8]

A part whose file is in the folder already is left out, so that the same command goes on where one stopped before. It
begins no part that may not end within the minutes; one that fills them all has an error in its file and is not tried
again. Without a GPU, `--device cpu --small` runs the same parts on small shapes.
"""

import argparse
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.bench.environment import device_clock, environment
from gptfast_cli.core.bench.workload import CaseOptions
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.load import RandomWeights
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.shapes import read_shape
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.events import result_of
from gptfast_cli.core.files import write_whole
from gptfast_cli.core.jobs.bench import BenchRequest, run
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import ModelWeights, assemble
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.schemes import Weight, quantized_names, schemes
from gptfast_cli.core.settings import Settings
from gptfast_cli.render.bench import document

SMALL = "layers=2,dim=64,heads=4,kv_heads=2,ffn=160,vocab=300"
CORRECTNESS = "layers=4,dim=256,heads=8,kv_heads=2,ffn=640,vocab=2000"
SPEED = ("llama-2-7b", "llama-3.1-8b")
# relative error of the logits against float32 on a CPU: the order of sums alone, and eight bits of mantissa through
# four layers
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
N_GREEDY = 32


@dataclass(frozen=True)
class Options:
    out: Path
    device: torch.device
    small: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", help="only this one")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes, to try the parts out")
    given = parser.parse_args()
    options = Options(given.out, torch.device(given.device), given.small)
    wanted = parts(options)
    if given.part is not None and given.part not in wanted:
        parser.error(f"no part {given.part}; parts: {', '.join(wanted)}")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _give_up)
    end = time.monotonic() + given.minutes * 60
    for name in [given.part] if given.part else wanted:
        path, left = options.out / f"{name}.json", end - time.monotonic()
        if path.exists():
            continue
        if left < given.minutes * 30:
            sys.stdout.write("Parts are left: the same command goes on from here.\n")
            return 1
        record = _record(wanted[name], left)
        if record is None and left < given.minutes * 59:
            continue  # it had not all of the time: the next call gives it that
        record = record or {"error": f"took more than {given.minutes} minutes"}
        write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
        sys.stdout.write(f"{name}: {record.get('error', 'done')}\n")
    return 0


def parts(options: Options) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is recorded, by name."""
    named: dict[str, Callable[[], dict[str, Any]]] = {"bandwidth": partial(bandwidth, options)}
    for scheme in (*quantized_names(), "plain"):
        for dtype in BOUNDS:
            named[f"correct-{scheme}-{dtype}"] = partial(correctness, options, scheme, dtype)
    for shape in (SMALL,) if options.small else SPEED:
        for mode in ("plain", "int8", "int4"):
            named[f"bench-{'small' if options.small else shape}-{mode}"] = partial(speed, options, shape, mode)
    return named


def bandwidth(options: Options) -> dict[str, Any]:
    """Bytes a second of a copy, both what it reads and what it writes: the fastest and the median of some."""
    now = device_clock(options.device)
    source = torch.ones((64 << 20 if options.device.type == "cpu" else 4 << 30) // 4, device=options.device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(10):
        begin = now()
        target.copy_(source)
        rates.append(2 * source.nbytes / (now() - begin) / 1e9)
    return {
        "environment": asdict(environment(options.device, source.dtype)),
        "copy_gbps": {"median": statistics.median(rates), "max": max(rates)},
    }


def correctness(options: Options, scheme: str, dtype: str) -> dict[str, Any]:
    """The same weights on a CPU in float32 and on the device: how far logits are apart, and whether tokens differ."""
    config = read_shape(SMALL if options.small else CORRECTNESS).config
    allocation, cpu = AllocationOptions(scheme).allocation(config), torch.device("cpu")
    stored = getattr(torch, dtype)
    weights = assemble(config, RandomWeights(config, allocation, device=cpu, dtype=stored, seed=0).read)
    reference = Transformer(config, _moved(weights, config, cpu, torch.float32), Reference(), torch.float32)
    tested = Transformer(config, _moved(weights, config, options.device, stored), Reference(), stored)
    prompt = torch.randint(config.vocab_size, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    expected, given = Runner(reference, 1), Runner(tested, 1)
    errors, margins, n_different = [], [], 0
    logits = expected.prefill(0, prompt).whole[0], given.prefill(0, prompt).whole[0].cpu()
    for _ in range(N_GREEDY):  # both go on with the reference's tokens, so that every position is compared
        exact, other = logits
        errors.append(float((other - exact).norm() / exact.norm()))
        token = int(exact.argmax())
        if int(other.argmax()) != token:
            n_different += 1
            margins.append(float((exact[token] - exact[int(other.argmax())]) / exact.std()))
        logits = expected.step([token]).whole[0], given.step([token]).whole[0].cpu()
    return {
        "environment": asdict(environment(options.device, stored)),
        "scheme": scheme,
        "largest_relative_error": max(errors),
        "bound": BOUNDS[dtype],
        "is_within_bound": max(errors) <= BOUNDS[dtype],
        "greedy_tokens": N_GREEDY,
        "greedy_different": n_different,
        "margins_where_different": margins,  # of the reference, in standard deviations of its logits: near 0 is a tie
    }


def speed(options: Options, shape: str, mode: str) -> dict[str, Any]:
    """The rows of `gptfast bench` with compiled steps; the read bandwidth is in its record."""
    request = BenchRequest(
        Settings(home=options.out / "home", hf_cache=options.out / "hub"),
        arch=shape,
        allocation=AllocationOptions(mode),
        runtime=RuntimeConfig(device=str(options.device), dtype="bfloat16"),
        compiling=Compiling(decode=True, backend="eager" if options.small else "inductor"),
        cases=CaseOptions((), (4,), (0,), (1, 2)) if options.small else CaseOptions((512,), (128,), (0,), (1, 8)),
        n_rounds=1 if options.small else 5,
    )
    record = result_of(run(request))
    if record.is_interrupted:
        raise KeyboardInterrupt
    return document(record, shlex.join(["python", *sys.argv]))


def _record(part: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    """What a part gives, or its error; None where the time was over."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return part()
    except KeyboardInterrupt:
        return None
    except (GptFastError, MemoryError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(*_: object) -> None:
    raise KeyboardInterrupt


def _moved(weights: ModelWeights, config: Any, device: torch.device, dtype: torch.dtype) -> ModelWeights:
    def moved(name: str) -> Weight:
        weight = _named(weights, name)
        return schemes[weight.scheme].to(weight, device, dtype)

    return assemble(config, moved)


def _named(weights: ModelWeights, name: str) -> Weight:
    """A weight by the name that `weight_shapes` has for it; none of these shapes has a bias."""
    if not name.startswith("layers."):
        return getattr(weights, name)
    _, index, field = name.split(".")
    found = getattr(weights.layers[int(index)], field)
    return found if isinstance(found, Weight) else found.weight


if __name__ == "__main__":
    sys.exit(main())
