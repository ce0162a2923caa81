"""From names to tasks with their questions, which may have to be downloaded."""

from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.measure.tasks.harness.quiet import own_errors, quiet
from gptfast_cli.core.measure.tasks.naming import resolved
from gptfast_cli.core.measure.tasks.options import TaskOptions


def load_tasks(options: TaskOptions) -> TaskDict:
    """The tasks and groups that names and patterns stand for.

    Raises NotFoundError for a name that is none, with those near it, and for a folder that is not there; NetworkError
    where questions cannot be downloaded, GptFastError for a task that cannot be made, UsageError for one that would run
    what a model writes.
    """
    if options.include_path is not None and not options.include_path.is_dir():
        raise NotFoundError(
            f"There is no folder {str(options.include_path)!r}.", "--include-path takes a folder of YAML."
        )
    loaded = _of_folder_alone(options) or _of_all(options)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(f"Task {name} runs what the model writes as a program, which is not done here.")
        n_shots = task.get_config("num_fewshot")
        if n_shots is None or (options.n_shots is not None and n_shots != 0):  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=options.n_shots or 0)
        task.set_fewshot_seed(seed=options.seed)
    return loaded


def _of_folder_alone(options: TaskOptions) -> TaskDict | None:
    """The tasks where the folder has all of them, as that is quick; None where others are needed."""
    if options.include_path is None:
        return None
    with quiet(), own_errors(f"Tasks {', '.join(options.names)} cannot be loaded"):
        manager = TaskManager(include_path=str(options.include_path), include_defaults=False)
        if not set(options.names) <= set(manager.all_tasks):
            return None
        try:
            return manager.load(list(options.names))
        except KeyError:  # a group of it, of which other tasks are a part
            return None


def _of_all(options: TaskOptions) -> TaskDict:
    """The tasks among all that the harness and the folder have."""
    with quiet():
        manager = TaskManager(include_path=None if options.include_path is None else str(options.include_path))
    names = resolved(options.names, manager.all_tasks)
    with quiet(), own_errors(f"Tasks {', '.join(names)} cannot be loaded"):
        return manager.load(names)
