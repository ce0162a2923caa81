"""Dice that know what they cost, and the templates they fill in.

Every choice in a document goes through `Dice`, which adds -log p of what it drew to `nats`. The sum over
a document is the exact information in its derivation. Where two derivations could end in the same text,
the text itself is likelier than either, so `nats` bounds its -log p from above.

A template is plain text with two marks:

    [a|b|c]        one of the three, equally likely; choices nest, and one of them may be empty
    [name: a|b|c]  the same, and remembered
    {name}         what was remembered; {Name} with a capital
"""

import inspect
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Seeded choices; `nats` is the sum of -log p over all of them so far."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.nats = 0.0

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, equally likely."""
        self.nats += math.log(len(options))
        return options[self._random.randrange(len(options))]

    def weighted(self, shares: Mapping[T, float]) -> T:
        """One of the keys, as likely as its share of the sum."""
        (drawn,) = self._random.choices(list(shares), list(shares.values()))
        self.nats -= math.log(shares[drawn] / sum(shares.values()))
        return drawn

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return self.choose(range(low, high + 1))

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """That many different options, in an order that is drawn too."""
        left = list(options)
        drawn = []
        for _ in range(count):
            drawn.append(self.choose(left))
            left.remove(drawn[-1])
        return drawn


def fill(template: str, dice: Dice, memory: dict[str, str]) -> str:
    """The template with its choices made; what it names is added to `memory`."""
    text = "".join(_spoken(_parse(template), dice, memory))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def blocks(text: str) -> tuple[str, ...]:
    """The templates in an indented text: a blank line parts them, a line indented further continues the last one."""
    return tuple(inspect.cleandoc(text).replace("\n    ", " ").split("\n\n"))


# A parsed template: text, a remembered name, or a choice (its own name or "", then the options).
Recall = tuple[str]
Choice = tuple[str, list["Template"]]
Template = list["str | Recall | Choice"]


def _spoken(template: Template, dice: Dice, memory: dict[str, str]) -> Iterator[str]:
    for part in template:
        match part:
            case str():
                yield part
            case (name,):
                value = memory[name[0].lower() + name[1:]]
                yield value[0].upper() + value[1:] if name[0].isupper() else value
            case (name, options):
                value = "".join(_spoken(dice.choose(options), dice, memory))
                if name:
                    memory[name] = value
                yield value


@cache
def _parse(text: str) -> Template:
    tokens = re.findall(r"\[(?:\w+: )?|[\]|]|\{\w+\}|[^\[\]|{}]+", text)
    assert "".join(tokens) == text, f"stray mark in template: {text}"
    return _sequence(tokens[::-1])


def _sequence(stack: list[str]) -> Template:
    """Parts up to the end of this option; `stack` holds what is still to read, the next one last."""
    parts: Template = []
    while stack and stack[-1] not in "|]":
        token = stack.pop()
        if token[0] == "[":
            parts.append((token[1:-2], _options(stack)))
        elif token[0] == "{":
            parts.append((token[1:-1],))
        else:
            parts.append(token)
    return parts


def _options(stack: list[str]) -> list[Template]:
    options = [_sequence(stack)]
    while stack.pop() == "|":
        options.append(_sequence(stack))
    return options
