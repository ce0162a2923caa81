"""Questions about the texts whose answers the generator knows: `choice.jsonl`, `cloze.jsonl` and `sums.jsonl`.

Their documents come from seeds of their own, so no question is about a document that the models have learned from or
are measured on elsewhere; short ones may read like one of those.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path

from recipe.grammar import Dice
from recipe.texts import CATEGORIES, sums

N_QUESTIONS = 200
N_CHOICES = 4

Row = dict[str, object]

_LAST_PARTS: Mapping[str, re.Pattern[str]] = {
    "stories": re.compile(r"(?s)(.*[.!?]\"?)( \"?[A-Z].*)"),  # the last sentence
    "dialogue": re.compile(r"(?s)(.*\n\w+:)( .*)"),  # what is said last
}
_N_OTHERS = 3000  # documents of each category that wrong answers are taken from


def choice() -> Iterator[Row]:
    """How does it go on: as the document does, or in the same words but for some that it has never used."""
    others = {name: sorted({_split(name, f"choice/{name}/{n}")[1] for n in range(_N_OTHERS)}) for name in _LAST_PARTS}
    for number in count():
        dice = Dice(f"choice/{number}")
        category = dice.choose(tuple(_LAST_PARTS))
        context, ending = _split(category, f"choice/{category}/question/{number}")
        wrong = [other for other in others[category] if _is_wrong(other, ending, context)]
        if len(wrong) >= N_CHOICES - 1:
            choices = dice.several(wrong, N_CHOICES - 1)
            answer = dice.number(0, N_CHOICES - 1)
            choices.insert(answer, ending)
            yield {"category": category, "context": context, "choices": choices, "answer": answer}


def cloze() -> Iterator[Row]:
    """Which word comes next, where it has been said before: the last such name of a document."""
    for number in count():
        dice = Dice(f"cloze/{number}")
        category = dice.choose(("stories", "dialogue"))
        text = CATEGORIES[category].write(dice)
        names = [found for found in re.finditer(r"(?<=[a-z,])( [A-Z]\w+)\b", text) if _is_known(found, text)]
        if names:
            last = names[-1]
            yield {"category": category, "context": text[: last.start()], "word": last.group()}


def arithmetic() -> Iterator[Row]:
    """A sum or a word problem, to be answered in the document's own words."""
    for number in count():
        dice = Dice(f"sums/{number}")
        question, answer = dice.choose((sums.question, sums.problem))(dice).split("\nA:")
        yield {"prompt": f"{question}\nA:", "answer": answer.partition(",")[0]}


KINDS: Mapping[str, Callable[[], Iterator[Row]]] = {"choice": choice, "cloze": cloze, "sums": arithmetic}


def write_questions(folder: Path) -> None:
    """Write a file for each kind, a row on each line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in KINDS.items():
        lines = islice(_different(json.dumps(row) for row in rows()), N_QUESTIONS)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _split(category: str, seed: str) -> tuple[str, str]:
    """A document of a category, in front of its last part and from there on."""
    dice = Dice(seed)
    found = None
    while found is None:
        found = _LAST_PARTS[category].fullmatch(CATEGORIES[category].write(dice))
    return found[1], found[2]


def _is_wrong(other: str, ending: str, context: str) -> bool:
    """Whether it differs from the true ending, and that in words alone that the document has in its place."""
    theirs, own = (re.findall(r"\w+|[^\w\s]", text) for text in (other, ending))
    if len(theirs) != len(own):
        return False
    known = set(re.findall(r"\w+|[^\w\s]", context))
    differing = [(a, b) for a, b in zip(theirs, own, strict=True) if a != b]
    return bool(differing) and all(b in known and a not in known for a, b in differing)


def _is_known(found: re.Match[str], text: str) -> bool:
    return re.search(rf"\b{found.group().strip()}\b", text[: found.start()]) is not None


def _different(lines: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line
