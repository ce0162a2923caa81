"""Where tasks come from. One file each."""

from collections.abc import Sequence
from typing import Protocol

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import Answer, Failure, TaskOptions, TaskRequest
from gptfast_cli.core.evals.tasks.results import Marks
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.settings import check_hub_environment


class TaskRun(Protocol):
    """Tasks with all that they ask."""

    @property
    def requests(self) -> Sequence[TaskRequest]:
        """What is asked, in an order of the exam's own; the same may be asked twice."""
        ...

    @property
    def questions(self) -> Sequence[tuple[str, int]]:
        """The task of each request, and the number of its question there."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know."""
        ...

    def marked(self, answers: Sequence[Answer | Failure | None]) -> Marks:
        """The results, of the questions whose requests all have an answer; None is what has not been asked yet."""
        ...


class TaskSet(Protocol):
    """Tasks with their questions, before a model is known."""

    def exam(self, answering: RequestRunner, prompter: Prompter | None) -> TaskRun:
        """What they ask of this model; the prompter writes conversations, where there are to be any."""
        ...


class Source(Protocol):
    """One place where tasks come from."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """The tasks that are asked for; raises NotFoundError for names that are none, with those near them."""
        ...


sources: Plugs[Source] = Plugs(__name__)


def open_tasks(options: TaskOptions) -> TaskSet:
    """The tasks that are asked for, from the one source that all of them come from.

    Raises what that source raises, and UsageError where the harness is not installed.
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
            f"{options.names[0]} is no bundled task, and lm-evaluation-harness is not installed.",
            "pip install lm_eval 'datasets>=4', or leave out --tasks for the bundled ones.",
        ) from error
    return harness.tasks(options)
