"""Answers that outlive a run which was stopped: a line for each in a file, until all have been marked.

A line is written at once; what a kill leaves of the last one is cut off when the file is next opened.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from gptfast_cli.core.files import disk_full_named
from gptfast_cli.core.measure.tasks.requests import Answer, LikelihoodAnswer, Request, key_of
from gptfast_cli.core.model.collective import ALONE, Collective
from gptfast_cli.core.transfer.lock import held_if_free


class Memory:
    """The answers so far, by request; `n_found` of them come from an earlier run."""

    def __init__(self, found: Mapping[str, Answer], path: Path | None = None, file: TextIO | None = None) -> None:
        self._path = path
        self._file = file
        self._answers = dict(found)
        self.n_found = len(found)

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


@contextlib.contextmanager
def open_memory(path: Path | None, together: Collective = ALONE) -> Iterator[Memory]:
    """The answers in a file; where another run has it, and for None, this one keeps its own to itself.

    Of several ranks the first one has the file, and all know what it held.
    """
    if together.rank != 0 or path is None:
        yield Memory(_shared({}, together))
        return
    with held_if_free(path) as is_ours:
        if not is_ours:
            yield Memory(_shared({}, together))
            return
        with path.open("r+", encoding="utf-8", newline="\n") as file:
            yield Memory(_shared(_read(file), together), path, file)


def _shared(found: Mapping[str, Answer], together: Collective) -> Mapping[str, Answer]:
    """What rank 0 has found."""
    return dict(map(_entry, together.agree([[key, _to_json(answer)] for key, answer in found.items()])))


def _read(file: TextIO) -> dict[str, Answer]:
    """The answers in a file, from whose last whole line it is to be written on."""
    answers: dict[str, Answer] = {}
    end = 0
    with contextlib.suppress(ValueError):  # from what is damaged on, everything is asked anew
        while (line := file.readline()).endswith("\n"):
            key, answer = _entry(json.loads(line))
            answers[key] = answer
            end = file.tell()
    file.seek(end)
    file.truncate()
    return answers


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
