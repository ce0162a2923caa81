"""Arithmetic in small numbers: rows of sums, questions with answers, and little word problems; all of it right."""

from collections.abc import Callable

from recipe.grammar import Dice, fill

Sum = tuple[str, int]

NAMES = {
    **dict.fromkeys(("Anna", "Emma", "Sara", "Nina"), "She"),
    **dict.fromkeys(("Paul", "Mark", "Simon", "Tim"), "He"),
}
THINGS = ("apples", "books", "coins", "cakes", "pencils", "shells", "stamps", "marbles")


def write(dice: Dice) -> str:
    """One page of sums."""
    return dice.choose((rows, questions, problem))(dice)


def plus(dice: Dice) -> Sum:
    """Two numbers up to ten, added."""
    a, b = dice.number(1, 10), dice.number(1, 10)
    return f"{a} + {b}", a + b


def minus(dice: Dice) -> Sum:
    """A sum of two numbers up to ten, and one of them taken away again."""
    a, b = dice.number(1, 10), dice.number(1, 10)
    return f"{a + b} - {b}", a


def times(dice: Dice) -> Sum:
    """A line of the multiplication table up to ten."""
    a, b = dice.number(1, 10), dice.number(1, 10)
    return f"{a} * {b}", a * b


KINDS: tuple[Callable[[Dice], Sum], ...] = (plus, minus, times)


def rows(dice: Dice) -> str:
    """Four to ten sums of one kind, one on each line."""
    kind = dice.choose(KINDS)
    return "\n".join("{} = {}".format(*kind(dice)) for _ in range(dice.number(4, 10)))


def questions(dice: Dice) -> str:
    """Two to four questions, each with its answer."""
    return "\n".join(question(dice) for _ in range(dice.number(2, 4)))


def question(dice: Dice) -> str:
    """A sum that is asked for, and its answer."""
    expression, value = dice.choose(KINDS)(dice)
    asked = dice.choose(("What is {}?", "How much is {}?", "Can you work out {}?")).format(expression)
    return f"Q: {asked}\nA: {expression} = {value}"


def problem(dice: Dice) -> str:
    """Somebody has some things, gets more or gives some away, and the answer is worked out."""
    name = dice.choose(tuple(NAMES))
    a, b = dice.number(2, 10), dice.number(2, 10)  # two at least: every thing counted is a plural
    start, sign, value, event = dice.choose(
        ((a, "+", a + b, "[finds|buys|gets] {b} more"), (a + b, "-", a, "[loses|sells|gives away] {b} of them"))
    )
    return fill(
        f"Q: {{name}} has {start} {{things}}. {{he}} {event}. How many {{things}} does {{name}} have now?\n"
        f"A: {start} {sign} {b} = {value}, so {{name}} has {value} {{things}}.",
        dice,
        {"name": name, "he": NAMES[name], "things": dice.choose(THINGS), "b": str(b)},
    )
