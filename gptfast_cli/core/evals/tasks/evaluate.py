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
from gptfast_cli.core.evals.tasks.requests import Answer, Failure, LikelihoodAnswer, TaskOptions, TaskRequest, key_of
from gptfast_cli.core.evals.tasks.results import FailedQuestion, TaskResults, write_records
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import disk_full_named
from gptfast_cli.core.hub.lock import held_if_free
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup


class ResponseCache:
    """Answers by request; `n_found` of them are from an earlier run."""

    def __init__(self, found: Mapping[str, Answer], path: Path | None = None, file: TextIO | None = None) -> None:
        self._path = path
        self._file = file
        self._answers = dict(found)
        self.n_found = len(found)

    def get(self, request: TaskRequest) -> Answer | None:
        """The cached answer to a request, or None."""
        return self._answers.get(key_of(request))

    def put(self, request: TaskRequest, answer: Answer) -> None:
        """Append an answer. Raises DiskFullError."""
        key = key_of(request)
        self._answers[key] = answer
        if self._file is not None:
            assert self._path is not None
            with disk_full_named(self._path, "the answers before are kept"):
                self._file.write(json.dumps([key, _to_json(answer)]) + "\n")
                self._file.flush()

    def remove(self) -> None:
        """Delete the file, once all answers are scored."""
        if self._file is not None:
            assert self._path is not None
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_response_cache(path: Path | None, group: ProcessGroup = ALONE) -> Iterator[ResponseCache]:
    """Open the response cache in a file; in memory only for None, or if another run has locked the file.

    Rank 0 owns the file and broadcasts its contents.
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
    """The answers that rank 0 found."""
    return dict(map(_entry, group.broadcast([[key, _to_json(answer)] for key, answer in found.items()])))


def _read(file: TextIO) -> dict[str, Answer]:
    """Answers in a file; it is truncated after its last complete line."""
    answers: dict[str, Answer] = {}
    end = 0
    with contextlib.suppress(ValueError):  # answers after a damaged line are requested again
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
    """Key and answer of a line. Raises ValueError for anything else."""
    match value:
        case [str(key), [float(logprob), bool(is_greedy)]]:
            return key, LikelihoodAnswer(logprob, is_greedy)
        case [str(key), float(answer) | str(answer)]:
            return key, answer
        case _:
            raise ValueError(value)


def evaluate(
    loaded: LoadedModel, tasks: TaskSet, options: TaskOptions, cache_path: Path | None, group: ProcessGroup = ALONE
) -> Job[TaskResults]:
    """Run tasks on a model. An interrupt gives the results of the questions answered so far.

    Questions that fail are reported beside the results of the others. Answers are cached in `cache_path` until all are
    scored, so that a stopped run can continue. Only rank 0 of `group` writes files. Raises UsageError if the model has
    no tokenizer, and what the chat template and the tasks raise.
    """
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, which tasks require.")
    bos_rules = bos_rules_of(loaded, loaded.tokenizer)
    request_runner = RequestRunner(loaded, bos_rules, options.batch_size, options.seed)
    yield Progress("make requests", 0, None, "requests")
    with _prompter(loaded, options) as prompter, open_response_cache(cache_path, group) as cache:
        task_run = tasks.task_run(request_runner, prompter)
        is_partial = False
        failures: dict[TaskRequest, Failure] = {}
        try:
            yield from _answer(task_run.requests, request_runner, cache, failures)
        except KeyboardInterrupt:
            is_partial = True
        yield Progress("marking", 0, None, "requests")
        marks = task_run.score_answers([failures.get(request) or cache.get(request) for request in task_run.requests])
        folder = None
        if options.output_path is not None and marks.results and group.rank == 0:
            folder = write_records(options.output_path, loaded.name, marks)
        if not is_partial:
            cache.remove()
    return TaskResults(
        results=marks.results,
        bos_rules=bos_rules.words(),
        seed=options.seed,
        is_partial=is_partial,
        n_found=cache.n_found,
        notes=task_run.notes,
        failures=tuple(_failed_questions(task_run, failures)),
        folder=folder,
    )


def _answer(
    requests: Sequence[TaskRequest],
    request_runner: RequestRunner,
    cache: ResponseCache,
    failures: dict[TaskRequest, Failure],
) -> Job[None]:
    """Answer requests that are not cached; failures are added to `failures`."""
    asked = list(dict.fromkeys(requests))
    unknown = [request for request in asked if cache.get(request) is None]
    n_done = len(asked) - len(unknown)
    if n_done:
        yield Note(f"{n_done:,} of {len(asked):,} answers were cached by an earlier run.")
    yield Progress("answer", n_done, len(asked), "requests")
    for number, answer in request_runner.answers(unknown):
        if isinstance(answer, Failure):
            failures[unknown[number]] = answer
        else:
            cache.put(unknown[number], answer)
        n_done += 1
        yield Progress("answer", n_done, len(asked), "requests")


def _failed_questions(task_run: TaskRun, failures: Mapping[TaskRequest, Failure]) -> Iterator[FailedQuestion]:
    """Failed questions, each once with its first reason."""
    failed: dict[tuple[str, int], Failure] = {}
    for request, question in zip(task_run.requests, task_run.questions, strict=True):
        if request in failures:
            failed.setdefault(question, failures[request])
    return (FailedQuestion(*question, failure.reason) for question, failure in failed.items())


def _prompter(loaded: LoadedModel, options: TaskOptions) -> AbstractContextManager[Prompter | None]:
    """The chat template, if it is to be applied."""
    return open_prompter(loaded, options.chat) if options.chat.chat else nullcontext()
