"""Tiny Python functions whose bodies do what their names say, some with an example that holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptfast_cli.bundled.recipe.grammar import Dice, fill


@dataclass(frozen=True, slots=True)
class Function:
    """A function to write down: parameters (as a template), body, description, and what it computes.

    `draws` gives the values of an example call.
    """

    parameters: str
    body: str
    says: str
    computes: Callable[..., object]
    draws: Callable[[Dice], tuple[object, ...]]


def one(dice: Dice) -> tuple[int]:
    """A number from 0 to 12."""
    return (dice.number(0, 12),)


def two(dice: Dice) -> tuple[int, int]:
    """Two numbers from 0 to 12."""
    return dice.number(0, 12), dice.number(0, 12)


def ordered(dice: Dice) -> tuple[int, int]:
    """A number from 0 to 12 and one that is not larger."""
    larger = dice.number(0, 12)
    return larger, dice.number(0, larger)


def factors(dice: Dice) -> tuple[int, int]:
    """Two numbers from 1 to 10."""
    return dice.number(1, 10), dice.number(1, 10)


def numbers(dice: Dice) -> tuple[list[int]]:
    """A list of two to four different numbers from 1 to 9."""
    return (dice.several(range(1, 10), dice.number(2, 4)),)


def word(dice: Dice) -> tuple[str]:
    """A short word."""
    return (dice.choose(("cat", "sun", "tree", "moon", "fish", "bird")),)


PAIR = "[a: a|x|left], [b: b|y|right]"
NUMBER = "[n: n|x|number]"
LIST = "[items: items|values|numbers]"
WORD = "[text: text|word|name]"


def _pair(expression: str) -> str:
    return f"[return {expression}|result = {expression}\n    return result]".replace("a@", "{a}").replace("b@", "{b}")
