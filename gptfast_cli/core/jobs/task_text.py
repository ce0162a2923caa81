"""The documents of lm_eval's tasks, of the split that is there to learn from: never of the one that is judged on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from gptfast_cli.core.errors import NetworkError, UsageError
from gptfast_cli.core.settings import check_hub_environment

_MOST = 10_000  # documents of a task


def documents_of_tasks(names: Sequence[str]) -> list[str]:
    """Texts of tasks, a question and its answer together, the first ones of each.

    Raises UsageError where lm_eval is not installed and for a task that it does not know or that has nothing to learn
    from; NetworkError where a task's data cannot be had.
    """
    check_hub_environment()
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415  (an extra that most people have no need of)
    except ImportError as error:
        raise UsageError(
            "--calibration-tasks: tasks come from lm_eval, which is not installed.", "pip install lm_eval 'datasets>=4'"
        ) from error
    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UsageError(f"--calibration-tasks: lm_eval has no task called {unknown[0]!r}.", "Such as wikitext.")
    try:
        tasks = [(name, task) for name in names for task in _tasks(manager.load_task_or_group(name))]
        return [text for name, task in tasks for text in _texts(name, task)]
    except OSError as error:  # what datasets and huggingface_hub raise without a network is one
        raise NetworkError(
            f"--calibration-tasks: the data of {', '.join(names)} cannot be had: {type(error).__name__}.",
            "Try again with a network, or give a text file with --calibration FILE.",
        ) from error


def _tasks(loaded: object) -> Iterator[Any]:
    """The tasks of a name; a group holds others."""
    if isinstance(loaded, Mapping):
        for inner in loaded.values():
            yield from _tasks(inner)
    else:
        yield loaded


def _texts(name: str, task: Any) -> Iterator[str]:  # noqa: ANN401  (lm_eval has no types)
    if task.has_training_docs():
        documents = task.training_docs()
    elif task.has_validation_docs() and task.has_test_docs():
        documents = task.validation_docs()
    else:
        raise UsageError(
            f"--calibration-tasks: {name} has but the documents that it is judged on.", "Take another task: wikitext."
        )
    for document in islice(documents, _MOST):
        parts = (task.doc_to_text(document), task.doc_to_target(document))
        yield " ".join(part for part in parts if isinstance(part, str) and part)
