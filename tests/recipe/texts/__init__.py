"""The five kinds of text the bundled pair can write, each a function from dice to one document.

The categories differ in how much of a document is chance: a sum is all chance up to its `=` and none
after it, a function body follows from its name, a dialogue may turn with every line. So a draft model
does well on some and less well on others.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recipe.grammar import Dice
from recipe.texts import code, dialogue, recipes, stories, sums


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of text: its share of the documents, its author, and where a prompt ends."""

    share: float
    write: Callable[[Dice], str]
    opening: re.Pattern[str]


CATEGORIES: Mapping[str, Category] = {
    "stories": Category(0.30, stories.write, re.compile(r"[^.]+\.")),
    "dialogue": Category(0.20, dialogue.write, re.compile(r".+\n\w+:")),
    "recipes": Category(0.15, recipes.write, re.compile(r".+:")),
    "sums": Category(0.20, sums.write, re.compile(r"Q: .+\nA:|.+\n.+ =")),
    "code": Category(0.15, code.write, re.compile(r"def .+:")),
}
