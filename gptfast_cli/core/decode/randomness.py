"""Uniform numbers keyed by seed, sequence, position and purpose: the same whatever the batch, its order or the device.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") has no state to
hand round: the number is a hash of its key, here three rounds of the SplitMix64 finaliser (Steele et al. 2014).
"""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


TOKEN, PROPOSAL, ACCEPTANCE = range(3)
"""What a number decides: the model's own token, the one that a draft proposes, or whether that one is accepted."""


def uniform(seed: int, sequence: int, position: int, purpose: int = TOKEN) -> float:
    """A number in [0, 1), one of 2^32 evenly spaced ones, all exact in float64; those of two purposes are unrelated."""
    state = 0
    for part in (seed, sequence, position) if purpose == TOKEN else (seed, sequence, position, purpose):
        state = _mix((state ^ part) + _GOLDEN_GAMMA & _MASK)
    return (state >> 32) / 2**32


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
