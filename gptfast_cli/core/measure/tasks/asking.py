"""Tasks put to a model: what they ask is answered, kept until all of it is, and marked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.decode.prompter import Prompter, open_prompter
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.measure.tasks.answering import Answering
from gptfast_cli.core.measure.tasks.beginnings import beginnings_of
from gptfast_cli.core.measure.tasks.memory import Memory, open_memory
from gptfast_cli.core.measure.tasks.options import TaskOptions
from gptfast_cli.core.measure.tasks.record_files import write_records
from gptfast_cli.core.measure.tasks.requests import Failure, Request
from gptfast_cli.core.measure.tasks.results import FailedQuestion, TaskResults
from gptfast_cli.core.measure.tasks.sources import Exam, TaskSet
from gptfast_cli.core.model.collective import ALONE, Collective


def ask(
    loaded: LoadedModel, tasks: TaskSet, options: TaskOptions, memory_path: Path | None, together: Collective = ALONE
) -> Job[TaskResults]:
    """Put tasks to a model; an interrupt while it answers ends it early, with the questions answered by then.

    A question that cannot be answered is told beside the results of the others. Answers are kept in a file, where one
    is named, until all of them have been marked. Of the ranks that hold the model, `together`, the first alone writes.
    Raises UsageError where the model has no tokenizer, and what the chat template and the tasks raise.
    """
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, and tasks are texts.")
    beginnings = beginnings_of(loaded, loaded.tokenizer)
    answering = Answering(loaded, beginnings, options.batch_size, options.seed)
    yield Progress("make requests", 0, None, "requests")
    with _conversation(loaded, options) as prompter, open_memory(memory_path, together) as memory:
        exam = tasks.exam(answering, prompter)
        is_partial = False
        failures: dict[Request, Failure] = {}
        try:
            yield from _answer(exam.requests, answering, memory, failures)
        except KeyboardInterrupt:
            is_partial = True
        yield Progress("marking", 0, None, "requests")
        marks = exam.marked([failures.get(request) or memory.known(request) for request in exam.requests])
        folder = None
        if options.output_path is not None and marks.results and together.rank == 0:
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
    requests: Sequence[Request], answering: Answering, memory: Memory, failures: dict[Request, Failure]
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


def _failed_questions(exam: Exam, failures: Mapping[Request, Failure]) -> Iterator[FailedQuestion]:
    """Each question once, with the first reason."""
    failed: dict[tuple[str, int], Failure] = {}
    for request, question in zip(exam.requests, exam.questions, strict=True):
        if request in failures:
            failed.setdefault(question, failures[request])
    return (FailedQuestion(*question, failure.reason) for question, failure in failed.items())


def _conversation(loaded: LoadedModel, options: TaskOptions) -> AbstractContextManager[Prompter | None]:
    """What writes conversations, where questions are put as messages."""
    return open_prompter(loaded, options.chat) if options.chat.chat else nullcontext()
