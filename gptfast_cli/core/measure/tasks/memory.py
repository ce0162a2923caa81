"""Answers that outlive a run which was stopped: a line for each in a file, until all have been marked.

A line is written at once; what a kill leaves of the last one is cut off when the file is next opened.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gptfast_cli.core.files import disk_full_named
from gptfast_cli.core.measure.tasks.requests import Answer, LikelihoodAnswer, Request, key_of
from gptfast_cli.core.transfer.lock import held_if_free


class Memory:
    """The answers so far, by request; `n_found` of them come from an earlier run."""

    def __init__(self, path: Path | None = None, file: TextIO | None = None) -> None:
        self._path = path
        self._file = file
        self._answers: dict[str, Answer] = {}
        if file is not None:
            self._read(file)
        self.n_found = len(self._answers)

    def known(self, request: Request) -> Answer | None:
        """The answer to a request, where there is one."""
        return self._answers.get(key_of(request))

    def keep(self, request: Request, answer: Answer) -> None:
        """Remember an answer; raises DiskFullError."""
        key = key_of(request)
        self._answers[key] = answer
        if self._file is not None:
            assert self._path is not None
            with disk_full_named(self._path, "the answers before are kept"):
                self._file.write(json.dumps([key, _to_json(answer)]) + "\n")
                self._file.flush()

    def forget(self) -> None:
        """Remove the file: every answer has been marked."""
        if self._file is not None:
            assert self._path is not None
            self._path.unlink(missing_ok=True)

    def _read(self, file: TextIO) -> None:
        end = 0
        with contextlib.suppress(ValueError):  # from what is damaged on, everything is asked anew
            while (line := file.readline()).endswith("\n"):
                key, answer = _entry(json.loads(line))
                self._answers[key] = answer
                end = file.tell()
        file.seek(end)
        file.truncate()


@contextlib.contextmanager
def open_memory(path: Path) -> Iterator[Memory]:
    """The answers in a file; where another run has it, this one keeps its own to itself."""
    with held_if_free(path) as is_ours:
        if not is_ours:
            yield Memory()
            return
        with path.open("r+", encoding="utf-8", newline="\n") as file:
            yield Memory(path, file)


def _to_json(answer: Answer) -> object:
    return [answer.logprob, answer.is_greedy] if isinstance(answer, LikelihoodAnswer) else answer


def _entry(value: object) -> tuple[str, Answer]:
    """Key and answer of a line; raises ValueError for what is neither."""
    match value:
        case [str(key), [float(logprob), bool(is_greedy)]]:
            return key, LikelihoodAnswer(logprob, is_greedy)
        case [str(key), float(answer) | str(answer)]:
            return key, answer
        case _:
            raise ValueError(value)
