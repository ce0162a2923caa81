"""What decoding loses to another program that takes one of the cores: on all threads, beside one thread alone.

    PYTHONPATH=. python tests/speed/busy.py [--arch SHAPE] [--mode int4] [--tokens 64] [--pairs 7]

Runs take turns, with and without a program that computes all the time; every ratio is one of neighbours, and the median
is reported beside the least and the largest. Goal: on a busy machine, all threads reach 0.9 of what one reaches.
"""

import argparse
import statistics
import subprocess
import sys
import time

from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import set_threads
from tests.speed.speculation import TARGET, decode, machine, model, tell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default=TARGET)
    parser.add_argument("--mode", default="int4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    models = {}
    for n_threads in (1, computing_cpus()):
        set_threads(n_threads)
        models[n_threads] = model(given.arch, given.mode)
    rates: dict[str, dict[int, list[float]]] = {state: {n: [] for n in models} for state in ("calm", "busy")}
    for _ in range(given.pairs):
        for state, of_threads in rates.items():
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if state == "busy" else None
            time.sleep(0.2)  # it starts, or the scheduler forgets it
            for n_threads, each in of_threads.items():
                _, seconds, _ = decode(models[n_threads], given.tokens, None)
                each.append((given.tokens - 1) / seconds)
            if other is not None:
                other.kill()
                other.wait()
    tell("| machine | threads | tok/s | beside one thread [least..largest] |\n|---|---|---|---|")
    for state, of_threads in rates.items():
        for n_threads, each in of_threads.items():
            ratios = [all_threads / one for all_threads, one in zip(each, of_threads[1], strict=True)]
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"
            tell(f"| {state} | {n_threads} | {statistics.median(each):.1f} | {spread} |")
    tell(f"\n{given.mode}; {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
