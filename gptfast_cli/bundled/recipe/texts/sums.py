"""Arithmetic in small numbers: rows of sums, questions with answers, and little word problems; all of it right."""

from collections.abc import Callable

from gptfast_cli.bundled.recipe.grammar import Dice, fill

Sum = tuple[str, int]

NAMES = {"Anna": "She", "Emma": "She", "Sara": "She", "Nina": "She", "Paul": "He", "Mark": "He", "Simon": "He", "Tim": "He"}
THINGS = ("apples", "books", "coins", "cakes", "pencils", "shells", "stamps", "marbles")


def write(dice: Dice) -> str:
    """One page of sums."""
    return dice.choose((rows, questions, problem))(dice)


def plus(dice: Dice) -> Sum:
    """Two numbers up to 20, added."""
    a, b = dice.number(0, 20), dice.number(0, 20)
    return f"{a} + {b}", a + b


def minus(dice: Dice) -> Sum:
    """A number up to 20, and one not larger taken from it."""
    a = dice.number(0, 20)
    b = dice.number(0, a)
    return f"{a} - {b}", a - b


def times(dice: Dice) -> Sum:
    """A line of the multiplication table up to ten."""
    a, b = dice.number(1, 10), dice.number(1, 10)
    return f"{a} * {b}", a * b


KINDS: tuple[Callable[[Dice], Sum], ...] = (plus, minus, times)


def rows(dice: Dice) -> str:
    """Three to eight sums of one kind, one on each line."""
    kind = dice.choose(KINDS)
    return "\n".join("{} = {}".format(*kind(dice)) for _ in range(dice.number(3, 8)))


def questions(dice: Dice) -> str:
    """Two to four questions, each with its answer."""
    return "\n".join(_question(dice) for _ in range(dice.number(2, 4)))


def _question(dice: Dice) -> str:
    expression, value = dice.choose(KINDS)(dice)
    asked = dice.choose(("What is {}?", "How much is {}?", "Can you work out {}?")).format(expression)
    return f"Q: {asked}\nA: {expression} = {value}"


def problem(dice: Dice) -> str:
    """Somebody has some things, gets more or gives some away, and the answer is worked out."""
    name = dice.choose(tuple(NAMES))
    memory = {"name": name, "he": NAMES[name].lower(), "things": dice.choose(THINGS)}
    more = dice.choose((True, False))
    expression, value = _plural(dice, more=more)
    start, change = expression.split()[::2]
    story = "[finds|buys|gets] " + change + " more" if more else "[loses|sells|gives away] " + change + " of them"
    return fill(
        f"Q: {{name}} has {start} {{things}}. {{He}} {story}. How many {{things}} does {{name}} have now?\n"
        f"A: {expression} = {value}, so {{name}} has {value} {{things}}.",
        dice,
        memory,
    )


def _plural(dice: Dice, *, more: bool) -> Sum:
    """A sum in which no number is one, so that every thing counted is a plural."""
    start, change = dice.number(5, 20), dice.number(2, 20) if more else dice.number(2, 3)
    return (f"{start} + {change}", start + change) if more else (f"{start} - {change}", start - change)
