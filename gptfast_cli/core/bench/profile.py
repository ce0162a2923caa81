"""A trace of a job's work under our phase names, in the JSON that Perfetto and Chrome open.

Every operation that is recorded takes time and a few hundred bytes, so the recording ends after some decode steps:
later ones are like them.
"""

import gzip
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch.profiler import profile

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import (
    Event,
    Job,
    Measured,
    Note,
)
from gptfast_cli.core.files import staged_file

T = TypeVar("T")

RECORDED_STEPS = 32
"""Decode steps after which the recording ends."""


def profiled(job: Job[T], path: Path) -> Job[T]:
    """Run a job and write a trace of it to `path`, gzipped where that ends in .gz, however the job ends.

    Raises UsageError, before any work, where `path` cannot be written or ends in neither .json nor .json.gz.
    """
    _check(path)
    recorder = _Recorder(path)
    try:
        result = yield from _recorded(job, recorder)
    finally:
        job.close()
        recorder.end()
    yield Note(f"Profile: {path} (at most {RECORDED_STEPS} decode steps); open it at https://ui.perfetto.dev")
    return result


class _Recorder:
    """Records from its birth to its end, and then writes what it has."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler's library writes to stderr about itself
        self._path = path
        # there is one cycle; PyTorch 2.11 would warn that it forgets the others
        self._profile: profile | None = profile(acc_events=True)
        self._profile.start()

    def end(self) -> None:
        """Stop and write; nothing the second time."""
        if self._profile is None:
            return
        ended, self._profile = self._profile, None
        ended.stop()
        with staged_file(self._path) as sibling:
            ended.export_chrome_trace(str(sibling))
            if self._path.suffix == ".gz":
                sibling.write_bytes(gzip.compress(sibling.read_bytes()))


def _recorded(job: Job[T], recorder: _Recorder) -> Job[T]:
    """The job itself, the recorder ended after enough of its steps; an interrupt goes through to the job."""
    n_steps = 0
    advance = partial(next, job)
    while True:
        try:
            event = advance()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
        n_steps += _is_step(event)
        if n_steps == RECORDED_STEPS:
            recorder.end()
        advance = partial(next, job)
        try:
            yield event
        except KeyboardInterrupt as interrupt:
            advance = partial(job.throw, interrupt)


def _is_step(event: Event) -> bool:
    return isinstance(event, Measured) and event.phase == "decode"


def _check(path: Path) -> None:
    if not path.name.endswith((".json", ".json.gz")):
        raise UsageError(f"--profile writes .json or .json.gz, and {str(path)!r} is neither.")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"--profile cannot write to {str(path)!r}: {error.strerror or error}.", "Name a file in a folder of yours."
        ) from error
