"""Record a trace of a job with our phase names, as JSON for Perfetto and Chrome.

Each recorded operation costs time and a few hundred bytes, so recording stops after RECORDED_STEPS decode steps.
"""

import gzip
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch.profiler import profile

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Event, Job, Measured, Note
from gptfast_cli.core.files import staged_file

T = TypeVar("T")

RECORDED_STEPS = 32
"""Number of decode steps that are recorded."""


def profiled(job: Job[T], path: Path) -> Job[T]:
    """Run a job and write its trace to `path` (gzipped for .gz), also when the job fails.

    Raises UsageError, before any work, if `path` is not writable or ends in neither .json nor .json.gz.
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
    """Records from construction until `end`, which writes the trace."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silence the profiler library's stderr
        self._path = path
        # one cycle; without acc_events PyTorch 2.11 warns
        self._profile: profile | None = profile(acc_events=True)
        self._profile.start()

    def end(self) -> None:
        """Stop and write the trace; the second call does nothing."""
        if self._profile is None:
            return
        ended, self._profile = self._profile, None
        ended.stop()
        with staged_file(self._path) as sibling:
            ended.export_chrome_trace(str(sibling))
            if self._path.suffix == ".gz":
                sibling.write_bytes(gzip.compress(sibling.read_bytes()))


def _recorded(job: Job[T], recorder: _Recorder) -> Job[T]:
    """Run the job, ending the recorder after RECORDED_STEPS steps; a KeyboardInterrupt is passed to the job."""
    n_steps = 0
    advance = partial(next, job)
    while True:
        try:
            event = advance()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration.value is Any
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
            f"--profile cannot write to {str(path)!r}: {error.strerror or error}.",
            "Choose a file in a writable folder.",
        ) from error
