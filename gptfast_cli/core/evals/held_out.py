"""Texts that are measured on, and whether they overlap with what a model was calibrated on.

A text is taken as the set of its runs of RUN_WORDS words in a row. Its sketch is the least of their hashes, at most
SKETCH_SIZE (bottom-k sketches: Cohen & Kaplan 2007). Another text overlaps where one of its runs is in the sketch. So
a text of N runs is known again in a piece of n with probability 1 - (1 - SKETCH_SIZE / N)^n: always where N is small,
and in practice wherever more than a page was taken over.

They are tokenised anew for each model, so the same text is more tokens for one model than for another.
"""

import hashlib
import heapq
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.checkpoints.manifest import CalibrationText
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.tokenizers import Tokenizer

RUN_WORDS = 20
SKETCH_SIZE = 512
_HASH_BYTES = 8


def refuse_overlap(text: str, calibration: CalibrationText | None, *, what: str) -> None:
    """Raise UsageError where a text to measure on, called `what`, has in it what a model was calibrated on."""
    if calibration is not None and not set(calibration.sketch).isdisjoint(_hashes(text)):
        raise UsageError(
            f"{what}: has pieces of the text that the model is calibrated on ({calibration.source}): it would look "
            "better than it is.",
            "Measure on another text, or calibrate on another.",
        )


def sketch(text: str) -> tuple[str, ...]:
    """The sketch of a text, in ascending order."""
    return tuple(heapq.nsmallest(SKETCH_SIZE, set(_hashes(text))))


def runs(text: str) -> Iterator[str]:
    """Its runs of words; of a shorter text, the whole of it."""
    words = text.split()
    for first in range(max(1, len(words) - RUN_WORDS + 1)):
        yield " ".join(words[first : first + RUN_WORDS])


def _hashes(text: str) -> Iterator[str]:
    for run in runs(text):
        yield hashlib.blake2b(run.encode(), digest_size=_HASH_BYTES).hexdigest()


N_POSITIONS = 2048
"""Positions to measure at: enough that KLD and alpha stand to two digits, few enough that it takes seconds."""

_WINDOW = 512
"""Tokens of a file's text that are read at once, as far as a model's context holds them."""

_BUNDLED = "heldout.txt"


def bundled_documents(tokenizer: Tokenizer, max_context: int) -> Iterator[list[int]]:
    """Each of the bundled documents with its beginning-of-sequence token, as far as a model's context holds it."""
    texts = (tokenizer.encode(document) for document in measured_content(None).strip().split("\n\n"))
    return (text[:max_context] for text in texts)


def bundled_texts(tokenizer: Tokenizer, max_context: int) -> list[list[int]]:
    """The first of the bundled documents: N_POSITIONS in all."""
    return first_positions(bundled_documents(tokenizer, max_context))


def read_text(file: Path) -> str:
    """A file's text as it stands, line ends and all; raises UsageError where it cannot be read or is no UTF-8."""
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}.", "Name a text file.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not text in UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error


def texts_of_file(file: Path, tokenizer: Tokenizer, max_context: int) -> list[list[int]]:
    """The beginning of a file's text in windows that each have a beginning-of-sequence token: N_POSITIONS, or fewer.

    Raises UsageError where the file cannot be read, is no UTF-8, or has no two tokens.
    """
    bos = tokenizer.encode("")
    tokens = tokenizer.encode(measured_content(file), bos=False)
    n = min(_WINDOW, max_context) - len(bos)
    texts = first_positions([*bos, *tokens[first : first + n]] for first in range(0, len(tokens), n))
    if not texts:
        raise UsageError(f"{file}: is too short to measure on.", "Take a text of a page or more.")
    return texts


def measured_content(file: Path | None) -> str:
    """As much of a file's text as is looked at, or the bundled text; raises UsageError as `texts_of_file`."""
    if file is None:
        return (importlib.resources.files("gptfast_cli") / "bundled" / _BUNDLED).read_text(encoding="utf-8")
    return read_text(file)[: N_POSITIONS * 64]  # no token of a text is longer on average


def first_positions(texts: Iterator[list[int]], n_positions: int = N_POSITIONS) -> list[list[int]]:
    """Texts up to so many tokens that have one before them; the last is cut there."""
    taken: list[list[int]] = []
    missing = n_positions
    for text in texts:
        if missing == 0:
            break
        if len(text) > 1:
            taken.append(text[: missing + 1])
            missing -= len(taken[-1]) - 1
    return taken
