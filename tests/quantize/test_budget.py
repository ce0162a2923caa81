"""The choice under a budget is the best of all there are."""

import itertools
import random

import pytest

from gptfast_cli.core.quantize.allocation import Option, Storage, frontier

STORAGES = [Storage("int4", 32), Storage("int8"), Storage("plain")]


def some_layers(n: int, seed: int, *, alike: bool) -> list[list[Option]]:
    draw = random.Random(seed)
    sizes = [100, 190, 400]
    return [
        [
            Option(storage, size if alike else size + draw.randrange(90), kld)
            for storage, size, kld in zip(
                STORAGES, sizes, sorted((draw.random() for _ in STORAGES), reverse=True), strict=True
            )
        ]
        for _ in range(n)
    ]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_no_choice_of_all_beats_the_frontier(seed: int, alike: bool) -> None:
    layers = some_layers(6, seed, alike=alike)
    every = [(sum(o.n_bytes for o in each), sum(o.kld for o in each)) for each in itertools.product(*layers)]
    choices = frontier(layers)
    for budget in range(600, 2600, 37):
        within = [choice for choice in choices if choice.n_bytes <= budget]
        best = min((kld for n_bytes, kld in every if n_bytes <= budget), default=None)
        assert (within[-1].kld if within else None) == (pytest.approx(best) if best is not None else None)
    for target in (0.1, 0.5, 1.0, 2.0, 3.0):
        enough = [choice for choice in choices if choice.kld <= target]
        least = min((n_bytes for n_bytes, kld in every if kld <= target), default=None)
        assert (enough[0].n_bytes if enough else None) == least


def test_a_choice_is_the_sum_of_its_options() -> None:
    for choice in frontier(some_layers(9, 7, alike=True)):
        assert choice.n_bytes == sum(option.n_bytes for option in choice.options)
        assert choice.kld == pytest.approx(sum(option.kld for option in choice.options))


def test_eighty_layers_are_chosen_for_at_once() -> None:
    choices = frontier(some_layers(80, 1, alike=True))
    assert len(choices) < 5000
    assert [choice.n_bytes for choice in choices] == sorted({choice.n_bytes for choice in choices})
