"""What each layer gets under a budget: the choice of one storage a layer that costs least for what it may weigh.

The cost of a choice is the sum of what its layers cost alone, each measured with all others as they were: KLD grows
with the square of small errors, and those of different layers hardly know of one another (HAWQ-V3, Yao et al. 2021,
arXiv:2011.10680, chooses by such a sum). What the chosen model loses as a whole is measured afterwards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptfast_cli.core.quant.allocation import Storage


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a layer: what it weighs, and what it costs (KLD in nats, with every other layer as it was)."""

    storage: Storage
    n_bytes: int
    kld: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One option for each layer, and the sums of what they weigh and cost."""

    options: tuple[Option, ...]
    n_bytes: int
    kld: float


def frontier(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """Every choice that no other beats in bytes and KLD, from the smallest to the most faithful; exact.

    Layers of one shape weigh alike, so that there are few different sums of bytes, and few choices are kept on the way.
    """
    kept = [Choice((), 0, 0.0)]
    for options in layers:
        grown = (
            Choice((*choice.options, option), choice.n_bytes + option.n_bytes, choice.kld + option.kld)
            for choice in kept
            for option in options
        )
        kept = list(_unbeaten(grown))
    return kept


def _unbeaten(choices: Iterable[Choice]) -> Iterable[Choice]:
    lowest = float("inf")
    for choice in sorted(choices, key=lambda choice: (choice.n_bytes, choice.kld)):
        if choice.kld < lowest:
            lowest = choice.kld
            yield choice
