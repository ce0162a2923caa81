"""Tiny Python functions whose bodies do what their names say, most with an example that holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Template

from recipe.grammar import Dice

Arguments = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """What a function returns, written in `$a` and `$b`; the same as something to compare with; its words.

    `parameters` are the names that `$a $b` may take; `draws` gives the arguments of an example call.
    """

    expression: str
    computes: Callable[..., object]
    says: str
    parameters: tuple[str, ...]
    draws: Callable[[Dice], Arguments]


def one(dice: Dice) -> Arguments:
    """A number from 1 to 10."""
    return (dice.number(1, 10),)


def two(dice: Dice) -> Arguments:
    """Two numbers from 1 to 10, the larger one first."""
    first, second = dice.number(1, 10), dice.number(1, 10)
    return max(first, second), min(first, second)


def numbers(dice: Dice) -> Arguments:
    """A list of two to four different numbers from 1 to 9."""
    return (dice.several(range(1, 10), dice.number(2, 4)),)


def word(dice: Dice) -> Arguments:
    """A short word."""
    return (dice.choose(("cat", "sun", "tree", "moon", "fish", "bird")),)


NUMBER = ("n", "x", "number")
PAIR = ("a b", "x y", "first second")
SIDES = ("width height", "a b", "w h")
ITEMS = ("items", "values", "numbers")
WORD = ("text", "word", "s")

FUNCTIONS: Mapping[str, Function] = {
    "add": Function("$a + $b", lambda a, b: b + a, "the sum of two numbers", PAIR, two),
    "subtract": Function("$a - $b", lambda a, b: a + -b, "the difference of two numbers", PAIR, two),
    "multiply": Function("$a * $b", lambda a, b: b * a, "the product of two numbers", PAIR, two),
    "double": Function("$a * 2", lambda a: a + a, "twice the number", NUMBER, one),
    "triple": Function("$a * 3", lambda a: a + a + a, "three times the number", NUMBER, one),
    "square": Function("$a * $a", lambda a: a**2, "the number times itself", NUMBER, one),
    "negate": Function("-$a", lambda a: 0 - a, "the number with its sign changed", NUMBER, one),
    "next_number": Function("$a + 1", lambda a: -~a, "the number after this one", NUMBER, one),
    "is_even": Function("$a % 2 == 0", lambda a: not a & 1, "True if the number is even", NUMBER, one),
    "is_odd": Function("$a % 2 == 1", lambda a: bool(a & 1), "True if the number is odd", NUMBER, one),
    "is_positive": Function("$a > 0", lambda a: abs(a) == a != 0, "True if the number is above zero", NUMBER, one),
    "larger": Function("$a if $a > $b else $b", max, "the larger of two numbers", PAIR, two),
    "smaller": Function("$a if $a < $b else $b", min, "the smaller of two numbers", PAIR, two),
    "is_equal": Function("$a == $b", lambda a, b: not a - b, "True if both are the same", PAIR, two),
    "area": Function("$a * $b", lambda a, b: b * a, "the area of a rectangle", SIDES, two),
    "perimeter": Function("2 * ($a + $b)", lambda a, b: a + a + b + b, "the way around a rectangle", SIDES, two),
    "total": Function("sum($a)", lambda a: sum(a[::-1]), "the sum of all numbers", ITEMS, numbers),
    "largest": Function("max($a)", lambda a: sorted(a)[-1], "the largest number", ITEMS, numbers),
    "smallest": Function("min($a)", lambda a: sorted(a)[0], "the smallest number", ITEMS, numbers),
    "count": Function("len($a)", lambda a: sum(1 for _ in a), "how many numbers there are", ITEMS, numbers),
    "first": Function("$a[0]", lambda a: next(iter(a)), "the first number of a list", ITEMS, numbers),
    "last": Function("$a[-1]", lambda a: a[len(a) - 1], "the last number of a list", ITEMS, numbers),
    "backwards": Function("$a[::-1]", lambda a: [*reversed(a)], "the list in reverse order", ITEMS, numbers),
    "in_order": Function("sorted($a)", lambda a: [*sorted({*a})], "the numbers in order", ITEMS, numbers),
    "shout": Function("$a.upper() + '!'", lambda a: f"{a.upper()}!", "the word in capital letters", WORD, word),
    "repeat": Function("$a + $a", lambda a: a * 2, "the word two times", WORD, word),
    "greet": Function("'Hello, ' + $a", lambda a: f"Hello, {a}", "a greeting", WORD, word),
    "length": Function("len($a)", lambda a: sum(1 for _ in a), "how many letters there are", WORD, word),
}


def write(dice: Dice) -> str:
    """One or two different functions."""
    return "\n".join(_definition(name, dice) for name in dice.several(tuple(FUNCTIONS), dice.number(1, 2)))


def _definition(name: str, dice: Dice) -> str:
    function = FUNCTIONS[name]
    parameters = dice.choose(function.parameters).split()
    expression = Template(function.expression).substitute(dict(zip("ab", parameters, strict=False)))
    docstring = dice.choose(("", f'    """Return {function.says}."""\n'))
    body = dice.choose((f"    return {expression}", f"    result = {expression}\n    return result"))
    example = dice.choose(("", *(f"\n{form}" for form in ("assert {} == {}", "print({})  # {}"))))
    if example:
        arguments = function.draws(dice)
        call = f"{name}({', '.join(map(repr, arguments))})"
        value = function.computes(*arguments)
        example = example.format(call, value if example.startswith("\nprint") else repr(value))
    return f"def {name}({', '.join(parameters)}):\n{docstring}{body}{example}"
