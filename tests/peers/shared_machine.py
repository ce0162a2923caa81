"""A machine that others use too: how fast its memory is now, and how much of its processors others take."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LARGEST_OTHERS = 0.05
"""Share of all processors, 0..1, that others may have while something is timed."""

_LOOK_SECONDS = 0.3
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of it.

    probe:             GB/s that its memory gives now
    others_cpu_s:      processor seconds that other processes, and other machines on the same host, have had so far
    now, sleep, n_cpus: as `time` has them, and the processors that the seconds are of
    """

    probe: Callable[[], float]
    others_cpu_s: Callable[[], float]
    n_cpus: int
    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def others_since(self, moment: tuple[float, float]) -> float:
        """Share of all processors, 0..1, that others had since a moment."""
        begin, cpu_s = moment
        return max(0.0, self.others_cpu_s() - cpu_s) / ((self.now() - begin) * self.n_cpus)

    def moment(self) -> tuple[float, float]:
        """Now, for `others_since`."""
        return self.now(), self.others_cpu_s()

    def is_quiet(self) -> bool:
        """Look for a moment whether others leave the processors alone."""
        begin = self.moment()
        self.sleep(_LOOK_SECONDS)
        return self.others_since(begin) <= LARGEST_OTHERS


def others_cpu_s() -> float:
    """See Machine; 0 where the system does not tell. Processes that this one started count once they have ended."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = _STAT.read_text().split()[1:9]
    ticks = sum(map(int, (user, nice, system, irq, soft_irq, stolen)))
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
