"""What each rank of a model in parts had to do: its memory, what it read, and how long it waited for the others."""

from dataclasses import dataclass

from gptfast_cli.core.measure.throughput import Metrics, Timings
from gptfast_cli.core.model.collective import Collective


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Of one rank.

    decode_gbps:      bytes of its own part that the steps read ÷ their time, in GB = 1e9 bytes
    collective_share: 0..1, of the time of prefill and decode, spent in collectives: their work, and waiting for the
                      slowest rank; on a GPU the time until they were queued, and without those of compiled steps
    """

    rank: int
    peak_memory_bytes: int
    decode_gbps: float | None
    collective_share: float | None


def rank_numbers(
    together: Collective, timings: Timings, metrics: Metrics, *, began: float
) -> tuple[RankNumbers, ...] | None:
    """Those of all ranks, for each of them to know; None where there is one.

    `began` is what `together.seconds` was before the first prefill.
    """
    if together.size == 1:
        return None
    seconds = timings.prefill_seconds + timings.decode_seconds
    share = (together.seconds - began) / seconds if seconds else None
    own = RankNumbers(together.rank, metrics.peak_memory_bytes, metrics.decode_gbps, share)
    return tuple(together.exchange(own))
