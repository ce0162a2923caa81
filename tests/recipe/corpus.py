"""The documents: an endless training text, one to calibrate on and a held-out one, each from seeds of their own.

A document is a category, drawn by its share, and what that category writes. Held-out documents come from other
seeds, and a training document that happens to read the same as one of them is left out.
"""

import gzip
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from gptfast_cli.core.evals.held_out import runs
from recipe.grammar import Dice
from recipe.texts import CATEGORIES

HELD_OUT_BYTES = 16_000  # of each category
PROMPTS_PER_CATEGORY = 12
CALIBRATION_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its category, and -log p of its derivation in nats, the choice of the category included."""

    category: str
    text: str
    nats: float


def document(seed: str) -> Document:
    """The one document that belongs to this seed."""
    dice = Dice(seed)
    category = dice.weighted({name: category.share for name, category in CATEGORIES.items()})
    text = CATEGORIES[category].write(dice)
    return Document(category, text, dice.nats)


def training(excluded: Collection[str]) -> Iterator[Document]:
    """Training documents without end, none of them with an excluded text."""
    documents = (document(f"train/{number}") for number in count())
    return (made for made in documents if made.text not in excluded)


def held_out() -> list[Document]:
    """Different documents in the order drawn, until each category has its bytes."""
    bytes_of: Counter[str] = Counter()
    kept: dict[str, Document] = {}
    for number in count():
        made = document(f"held-out/{number}")
        if made.text in kept or bytes_of[made.category] >= HELD_OUT_BYTES:
            continue
        kept[made.text] = made
        bytes_of[made.category] += len(made.text.encode())
        if len(bytes_of) == len(CATEGORIES) and min(bytes_of.values()) >= HELD_OUT_BYTES:
            break
    return list(kept.values())


def calibration() -> Iterator[Document]:
    """Documents without end to calibrate a quantization on, none of them with a run of words that is held out.

    Recipes share many such runs: most of them are left out.
    """
    measured = {run for made in held_out() for run in runs(made.text)}
    documents = (document(f"calibration/{number}") for number in count())
    return (made for made in documents if measured.isdisjoint(runs(made.text)))


def prompts() -> Iterator[dict[str, str]]:
    """Different openings of documents from a third kind of seed, as rows with id, category and prompt."""
    for name, category in CATEGORIES.items():
        texts = (category.write(Dice(f"prompt/{name}/{number}")) for number in count())
        openings = (found.group() for text in texts if (found := category.opening.match(text)))
        for number, prompt in enumerate(islice(_different(openings), PROMPTS_PER_CATEGORY)):
            yield {"id": f"{name}-{number}", "category": name, "prompt": prompt}


def calibration_text() -> str:
    """The first CALIBRATION_BYTES of the documents to calibrate on, whole ones, a blank line between them."""
    texts, n_bytes = [], 0
    for made in calibration():
        texts.append(made.text)
        n_bytes += len(made.text.encode()) + 2
        if n_bytes >= CALIBRATION_BYTES:
            break
    return "\n\n".join(texts) + "\n"


def write_texts(folder: Path) -> None:
    """Write `prompts.jsonl`, a row on each line, and the texts, `heldout.txt` and `calibration.txt.gz`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    (folder / "heldout.txt").write_text("\n\n".join(document.text for document in held_out()) + "\n")
    (folder / "calibration.txt.gz").write_bytes(gzip.compress(calibration_text().encode(), mtime=0))


def _different(texts: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text
