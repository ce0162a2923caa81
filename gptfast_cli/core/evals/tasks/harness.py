"""Tasks of lm-evaluation-harness: loaded, asked and marked by its own code."""

import contextlib
import io
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import lm_eval
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from gptfast_cli.core.errors import GptFastError, NetworkError, NotFoundError, UsageError
from gptfast_cli.core.evals.tasks.harness_model import HarnessModel, asked, ignored, requests_of
from gptfast_cli.core.evals.tasks.requests import Answer, Failure, TaskOptions, TaskRequest, resolved_task
from gptfast_cli.core.evals.tasks.results import Marks, Metric, TaskResult

_ONE_PROCESS: Final = "DISABLE_MULTIPROC"  # one that is made by forking would have none of the model's threads

_OF_THE_NETWORK: Final = ("Connection", "Connect", "Offline", "Timeout", "LocalEntryNotFound", "MaxRetry")
"""What the names of errors begin with that several libraries raise where a download fails."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let the block say nothing: what matters of it is in its result or its error."""
    processes = os.environ.get(_ONE_PROCESS)
    os.environ[_ONE_PROCESS] = "1"
    disabled = logging.root.manager.disable
    logging.disable()
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if processes is None:
            del os.environ[_ONE_PROCESS]
        else:
            os.environ[_ONE_PROCESS] = processes


@contextlib.contextmanager
def own_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong in a task into one of our errors, in a line that begins with `what`.

    Raises NetworkError where questions cannot be downloaded, else GptFastError.
    """
    try:
        yield
    except GptFastError as error:
        error.message = f"{what}: {error.message}"
        raise
    except Exception as error:  # a task is someone else's program
        kind = type(error).__name__
        reason = next(iter(str(error).strip().splitlines()), "")
        if kind.startswith(_OF_THE_NETWORK):
            hint = "Questions are downloaded once, and this needs a network."
            raise NetworkError(f"{what}: {kind}: {reason}", hint) from error
        raise GptFastError(f"{what}: {kind}: {reason}", "--debug shows where in the task it arose.") from error


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
    names = resolved_task(options.names, manager.all_tasks)
    with quiet(), own_errors(f"Tasks {', '.join(names)} cannot be loaded"):
        return manager.load(names)


_BOOTSTRAPS: Final = 1000
"""Resamplings for the standard error of what is no mean: it is then right to 3 % or so."""


class HarnessTaskRun:
    """See Exam."""

    def __init__(self, loaded: TaskDict, model: HarnessModel, options: TaskOptions) -> None:
        self._tasks: dict[str, Task] = loaded["tasks"]
        self._groups: dict[str, Any] = loaded.get("groups", {})
        self._model = model
        self._options = options
        self.requests: list[TaskRequest] = []
        self.questions: list[tuple[str, int]] = []
        self._places: dict[str, slice] = {}  # of each task's requests among all
        for name, task in self._tasks.items():
            self._build(name, task)
            first = len(self.requests)
            self.requests += requests_of(asked(task.instances))
            self.questions += [(name, instance.doc_id) for instance in asked(task.instances)]
            self._places[name] = slice(first, len(self.requests))

    @property
    def notes(self) -> tuple[str, ...]:
        """See Exam."""
        settings = {name for task in self._tasks.values() for name in ignored(task.config.generation_kwargs or {})}
        notes = []
        if settings:
            notes.append(f"settings of generation without effect here: {', '.join(sorted(settings))}")
        if self._model.has_left_out_system:
            notes.append("the chat template refuses system messages, which were left out")
        return tuple(notes)

    def marked(self, answers: Sequence[Answer | Failure | None]) -> Marks:
        """See Exam; groups are left out where not all of their tasks' questions have been asked."""
        for request, answer in zip(self.requests, answers, strict=True):
            if answer is not None and not isinstance(answer, Failure):
                self._model.learn({request: answer})
        n_asked = {name: _n_questions(task) for name, task in self._tasks.items()}
        answered = {name: self._answered(name, answers) for name in self._tasks}
        is_whole = all(len(questions) == n_asked[name] for name, questions in answered.items())
        tasks = {name: task for name, task in self._tasks.items() if answered[name]}
        if not tasks:
            return Marks((), {}, {})
        has_groups = None not in answers and len(tasks) == len(self._tasks)
        if not is_whole:
            for name, task in tasks.items():
                _keep(task, answered[name])
        with quiet(), own_errors(f"Tasks {', '.join(tasks)} cannot be marked"):
            record = evaluate(
                self._model,
                {"tasks": tasks, "groups": self._groups if has_groups else {}},
                limit=self._options.limit if is_whole else None,
                samples=None if is_whole else {name: answered[name] for name in tasks},
                bootstrap_iters=_BOOTSTRAPS,
            )
        samples = record.pop("samples")
        results = tuple(_result(name, record, n_asked) for name in record["results"])
        return Marks(results, record | self._about(), samples)

    def _build(self, name: str, task: Task) -> None:
        """Make what a task asks, once: the harness would draw other examples the second time."""
        chat = self._options.chat
        with quiet(), own_errors(f"Task {name} cannot be asked"):
            task.build_all_requests(
                limit=get_sample_size(task, self._options.limit),
                system_instruction=chat.system,
                apply_chat_template=chat.chat is True,
                fewshot_as_multiturn=chat.chat is True,
                chat_template=self._model.apply_chat_template if chat.chat is True else None,
                tokenizer_name=self._model.tokenizer_name,
            )
        task.build_all_requests = lambda **_: None

    def _answered(self, name: str, answers: Sequence[Answer | Failure | None]) -> list[int]:
        """The questions of a task whose requests have all been answered."""
        missing: dict[int, bool] = defaultdict(bool)
        for instance, answer in zip(asked(self._tasks[name].instances), answers[self._places[name]], strict=True):
            missing[instance.doc_id] |= answer is None or isinstance(answer, Failure)
        return sorted(question for question, is_missing in missing.items() if not is_missing)

    def _about(self) -> dict[str, Any]:
        """What the harness writes beside results of how they were made."""
        loaded = self._model.answering.loaded
        options = self._options
        return {
            "config": {
                "model": "gptfast",
                "model_args": {"model": loaded.name, "dtype": str(loaded.model.dtype)},
                "batch_size": options.batch_size,
                "device": str(loaded.model.device),
                "limit": options.limit,
                "bootstrap_iters": _BOOTSTRAPS,
                "gen_kwargs": None,
                "fewshot_seed": options.seed,
            },
            "lm_eval_version": lm_eval.__version__,
            "system_instruction": options.chat.system,
        }


def _n_questions(task: Task) -> int:
    return len({instance.doc_id for instance in task.instances})


def _keep(task: Task, questions: Sequence[int]) -> None:
    """Let a task have asked these questions alone, which the harness then numbers anew."""
    place = {question: number for number, question in enumerate(questions)}
    kept = [instance for instance in task.instances if instance.doc_id in place]
    for instance in kept:
        instance.doc_id = place[instance.doc_id]
    task._instances = kept  # noqa: SLF001  # the harness has no public way


def _result(name: str, record: Mapping[str, Any], n_asked: Mapping[str, int]) -> TaskResult:
    values = record["results"][name]
    n_samples = record["n-samples"].get(name)
    n_all = 0 if n_samples is None else n_samples["original"]
    n = 0 if n_samples is None else n_samples["effective"]
    return TaskResult(
        task=name,
        metrics=tuple(_metrics(values)),
        n=n,
        n_all=n_all,
        n_shots=record["n-shot"].get(name),
        is_whole=n_samples is None or n == n_asked[name],
        is_group=n_samples is None,
    )


def _metrics(values: Mapping[str, Any]) -> list[Metric]:
    """The numbers of a task; the harness names them `acc,none`, with the filter of answers behind the comma."""
    metrics = []
    for key, value in values.items():
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{name}_stderr,{chosen}")
        metrics.append(
            Metric(
                name if chosen == "none" else key,
                float(value),
                float(stderr) if isinstance(stderr, int | float) else None,
            )
        )
    return metrics
