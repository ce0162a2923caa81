"""A run of tasks whose responses are cached in a file, so that a stopped run goes on.

A line is written at once; what a kill leaves of the last one is cut off when the file is next opened.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

from gptfast_cli.core.engine.chat import Prompter, open_prompter
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import (
    Answer,
    Failure,
    LikelihoodAnswer,
    TaskOptions,
    TaskRequest,
    key_of,
)
from gptfast_cli.core.evals.tasks.results import FailedQuestion, TaskResults, write_records
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import disk_full_named
from gptfast_cli.core.hub.lock import held_if_free
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup


class ResponseCache:
    """The answers so far, by request; `n_found` of them come from an earlier run."""

    def __init__(self, found: Mapping[str, Answer], path: Path | None = None, file: TextIO | None = None) -> None:
        self._path = path
        self._file = file
        self._answers = dict(found)
        self.n_found = len(found)

    def known(self, request: TaskRequest) -> Answer | None:
        """The answer to a request, where there is one."""
        return self._answers.get(key_of(request))

    def keep(self, request: TaskRequest, answer: Answer) -> None:
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
def open_response_cache(path: Path | None, group: ProcessGroup = ALONE) -> Iterator[ResponseCache]:
    """The answers in a file; where another run has it, and for None, this one keeps its own to itself.

    Of several ranks the first one has the file, and all know what it held.
    """
    if group.rank != 0 or path is None:
        yield ResponseCache(_shared({}, group))
        return
    with held_if_free(path) as is_ours:
        if not is_ours:
            yield ResponseCache(_shared({}, group))
            return
        with path.open("r+", encoding="utf-8", newline="\n") as file:
            yield ResponseCache(_shared(_read(file), group), path, file)


def _shared(found: Mapping[str, Answer], group: ProcessGroup) -> Mapping[str, Answer]:
    """What rank 0 has found."""
    return dict(map(_entry, group.broadcast([[key, _to_json(answer)] for key, answer in found.items()])))


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


def evaluate(
    loaded: LoadedModel, tasks: TaskSet, options: TaskOptions, memory_path: Path | None, group: ProcessGroup = ALONE
) -> Job[TaskResults]:
    """Put tasks to a model; an interrupt while it answers ends it early, with the questions answered by then.

    A question that cannot be answered is told beside the results of the others. Answers are kept in a file, where one
    is named, until all of them have been marked. Of the ranks that hold the model, `group`, the first alone writes.
    Raises UsageError where the model has no tokenizer, and what the chat template and the tasks raise.
    """
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, and tasks are texts.")
    beginnings = bos_rules_of(loaded, loaded.tokenizer)
    answering = RequestRunner(loaded, beginnings, options.batch_size, options.seed)
    yield Progress("make requests", 0, None, "requests")
    with _conversation(loaded, options) as prompter, open_response_cache(memory_path, group) as memory:
        exam = tasks.exam(answering, prompter)
        is_partial = False
        failures: dict[TaskRequest, Failure] = {}
        try:
            yield from _answer(exam.requests, answering, memory, failures)
        except KeyboardInterrupt:
            is_partial = True
        yield Progress("marking", 0, None, "requests")
        marks = exam.marked([failures.get(request) or memory.known(request) for request in exam.requests])
        folder = None
        if options.output_path is not None and marks.results and group.rank == 0:
            folder = write_records(options.output_path, loaded.name, marks)
        if not is_partial:
            memory.forget()
    return TaskResults(
        results=marks.results,
        beginnings=beginnings.words(),
        seed=options.seed,
        is_partial=is_partial,
        n_found=memory.n_found,
        notes=exam.notes,
        failures=tuple(_failed_questions(exam, failures)),
        folder=folder,
    )


def _answer(
    requests: Sequence[TaskRequest],
    answering: RequestRunner,
    memory: ResponseCache,
    failures: dict[TaskRequest, Failure],
) -> Job[None]:
    """Answer what is not known yet, and add what cannot be answered to the failures."""
    asked = list(dict.fromkeys(requests))
    unknown = [request for request in asked if memory.known(request) is None]
    n_done = len(asked) - len(unknown)
    if n_done:
        yield Note(f"{n_done:,} of {len(asked):,} answers are there from an earlier run.")
    yield Progress("answer", n_done, len(asked), "requests")
    for number, answer in answering.answers(unknown):
        if isinstance(answer, Failure):
            failures[unknown[number]] = answer
        else:
            memory.keep(unknown[number], answer)
        n_done += 1
        yield Progress("answer", n_done, len(asked), "requests")


def _failed_questions(exam: TaskRun, failures: Mapping[TaskRequest, Failure]) -> Iterator[FailedQuestion]:
    """Each question once, with the first reason."""
    failed: dict[tuple[str, int], Failure] = {}
    for request, question in zip(exam.requests, exam.questions, strict=True):
        if request in failures:
            failed.setdefault(question, failures[request])
    return (FailedQuestion(*question, failure.reason) for question, failure in failed.items())


def _conversation(loaded: LoadedModel, options: TaskOptions) -> AbstractContextManager[Prompter | None]:
    """What writes conversations, where questions are put as messages."""
    return open_prompter(loaded, options.chat) if options.chat.chat else nullcontext()
