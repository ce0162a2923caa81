"""`gptfast` whose `bench` reads no memory: `python bench_without_probes.py ARGUMENTS...`.

A probe takes longer than a row of these tests' models, and there are two for each repetition; what it measures is
tested elsewhere.
"""

from dataclasses import dataclass
from functools import partial

from gptfast_cli.__main__ import main
from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.jobs import bench
from gptfast_cli.core.jobs.bench import Instruments


@dataclass(frozen=True)
class KnownBandwidth:
    """A probe that takes no time and no memory."""

    n_bytes: int = 0

    def measure(self) -> Bandwidth:
        return Bandwidth(1 << 30, 0.125)


if __name__ == "__main__":
    bench.run = partial(bench.run, instruments=Instruments(probe=lambda device, now: KnownBandwidth()))  # type: ignore[assignment]
    main()
