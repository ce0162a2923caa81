"""How fast a row of a benchmark is, and how near to the roof of the memory that it reads (Williams et al. 2009).

A decode step reads the weights and the keys and values once, whatever it computes from them, so that

    MBU = bytes read / time / read bandwidth

is the share of the possible that it reaches. It is taken of each repetition with the bandwidth measured around it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gptfast_cli.core.measure.repetitions import Repetition, Spread, spread


@dataclass(frozen=True, slots=True)
class Speed:
    """What the repetitions of a row say.

    tok_s: tokens a second, of all sequences together
    gbps:  median of the bytes read a second, in GB = 1e9 bytes; mbu: median of their share of the measured bandwidth,
           0..1. Both None where bandwidth is not what limits
    """

    tok_s: Spread
    gbps: float | None
    mbu: float | None


def speed(n_tokens: int, repetitions: Sequence[Repetition]) -> Speed:
    """The speed of a row that processes `n_tokens` in each of its repetitions, of which there is at least one."""
    rates = [(times.n_bytes / times.seconds, times.bandwidth) for times in repetitions if times.n_bytes is not None]
    return Speed(
        tok_s=spread([n_tokens / times.seconds for times in repetitions]),
        gbps=statistics.median(rate / 1e9 for rate, _ in rates) if rates else None,
        mbu=statistics.median(rate / bandwidth for rate, bandwidth in rates) if rates else None,
    )
