"""Sources of tasks. One file each."""

from collections.abc import Sequence
from typing import Protocol

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import Answer, Failure, TaskOptions, TaskRequest
from gptfast_cli.core.evals.tasks.results import TaskScores
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.settings import check_hub_environment


class TaskRun(Protocol):
    """Tasks with their requests to one model."""

    @property
    def requests(self) -> Sequence[TaskRequest]:
        """All requests, in the order that `score_answers` expects; duplicates are allowed."""
        ...

    @property
    def questions(self) -> Sequence[tuple[str, int]]:
        """(task, question number) of each request."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how to read the numbers."""
        ...

    def score_answers(self, answers: Sequence[Answer | Failure | None]) -> TaskScores:
        """Scores of the questions whose requests are all answered; None: not answered yet."""
        ...


class TaskSet(Protocol):
    """Tasks with their questions."""

    def task_run(self, request_runner: RequestRunner, prompter: Prompter | None) -> TaskRun:
        """The requests to a model; `prompter` applies the chat template, if any."""
        ...


class Source(Protocol):
    """A source of tasks."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """The requested tasks. Raises NotFoundError for unknown names, with similar ones."""
        ...


sources: Plugs[Source] = Plugs(__name__)


def open_tasks(options: TaskOptions) -> TaskSet:
    """The requested tasks: bundled ones, or those of the harness.

    Raises what the source raises, and UsageError if the harness is not installed.
    """
    if all(name.startswith("bundled") for name in options.names):
        return sources["bundled"].tasks(options)
    check_hub_environment()
    try:
        harness = sources["harness"]
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise UsageError(
            f"{options.names[0]} is not a bundled task, and lm-evaluation-harness is not installed.",
            "pip install lm_eval 'datasets>=4', or leave out --tasks for the bundled ones.",
        ) from error
    return harness.tasks(options)
