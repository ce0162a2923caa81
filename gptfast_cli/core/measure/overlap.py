"""Whether a text holds a piece of another one, of which only a sketch was kept.

A text is taken as the set of its runs of RUN_WORDS words in a row. Its sketch is the least of their hashes, at most
SKETCH_SIZE (bottom-k sketches: Cohen & Kaplan 2007). Another text overlaps where one of its runs is in the sketch. So
a text of N runs is known again in a piece of n with probability 1 - (1 - SKETCH_SIZE / N)^n: always where N is small,
and in practice wherever more than a page was taken over.
"""

import hashlib
import heapq
from collections.abc import Iterator

from gptfast_cli.core.checkpoints.manifest import CalibrationText
from gptfast_cli.core.errors import UsageError

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
