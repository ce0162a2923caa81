"""Held-out texts for evaluation, and detection of overlap with a model's calibration text.

The sketch of a calibration text is the SKETCH_SIZE smallest hashes of its word n-grams, n = RUN_WORDS (bottom-k
sketches: Cohen & Kaplan 2007). A text overlaps if one of its n-grams is in the sketch: an excerpt of n of the N n-grams
is detected with probability 1 - (1 - SKETCH_SIZE / N)^n, in practice whenever more than a page was reused.
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
    """Raise UsageError if the evaluation text `what` overlaps with the calibration text."""
    if calibration is not None and not set(calibration.sketch).isdisjoint(_hashes(text)):
        raise UsageError(
            f"{what}: overlaps with the calibration text of the model ({calibration.source}): the result would be "
            "too good.",
            "Evaluate on another text, or calibrate on another.",
        )


def sketch(text: str) -> tuple[str, ...]:
    """The sketch of a text: hexadecimal hashes, ascending."""
    return tuple(heapq.nsmallest(SKETCH_SIZE, set(_hashes(text))))


def runs(text: str) -> Iterator[str]:
    """Word n-grams of a text; a shorter text is one n-gram."""
    words = text.split()
    for first in range(max(1, len(words) - RUN_WORDS + 1)):
        yield " ".join(words[first : first + RUN_WORDS])


def _hashes(text: str) -> Iterator[str]:
    for run in runs(text):
        yield hashlib.blake2b(run.encode(), digest_size=_HASH_BYTES).hexdigest()


N_POSITIONS = 2048
"""Positions: enough for two digits of KLD and alpha, few enough to take seconds."""

_WINDOW = 512
"""Window of a file's text in tokens, or the context length if that is shorter."""

_BUNDLED = "heldout.txt"


def bundled_documents(tokenizer: Tokenizer, max_context: int) -> Iterator[list[int]]:
    """The bundled documents, each with a BOS token, truncated to the context length."""
    texts = (tokenizer.encode(document) for document in measured_content(None).strip().split("\n\n"))
    return (text[:max_context] for text in texts)


def bundled_texts(tokenizer: Tokenizer, max_context: int) -> list[list[int]]:
    """The first N_POSITIONS positions of the bundled documents."""
    return first_positions(bundled_documents(tokenizer, max_context))


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, line ends unchanged. Raises UsageError if it cannot be read or decoded."""
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}.", "Name a text file.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not text in UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error


def texts_of_file(file: Path, tokenizer: Tokenizer, max_context: int) -> list[list[int]]:
    """Windows of a file's text, each with a BOS token, up to N_POSITIONS positions.

    Raises UsageError if the file cannot be read, is not UTF-8, or has fewer than two tokens.
    """
    bos = tokenizer.encode("")
    tokens = tokenizer.encode(measured_content(file), bos=False)
    n = min(_WINDOW, max_context) - len(bos)
    texts = first_positions([*bos, *tokens[first : first + n]] for first in range(0, len(tokens), n))
    if not texts:
        raise UsageError(f"{file}: is too short to evaluate on.", "Use a text of a page or more.")
    return texts


def measured_content(file: Path | None) -> str:
    """The evaluated part of a file's text, or the bundled text. Raises UsageError like `texts_of_file`."""
    if file is None:
        return (importlib.resources.files("gptfast_cli") / "bundled" / _BUNDLED).read_text(encoding="utf-8")
    return read_text(file)[: N_POSITIONS * 64]  # no text has longer tokens on average


def first_positions(texts: Iterator[list[int]], n_positions: int = N_POSITIONS) -> list[list[int]]:
    """The first texts up to `n_positions` predicted tokens; the last is truncated."""
    taken: list[list[int]] = []
    missing = n_positions
    for text in texts:
        if missing == 0:
            break
        if len(text) > 1:
            taken.append(text[: missing + 1])
            missing -= len(taken[-1]) - 1
    return taken
