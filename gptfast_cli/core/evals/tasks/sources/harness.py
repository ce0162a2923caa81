"""Tasks of lm-evaluation-harness, and tasks written for it in YAML: loaded, built and scored by its own code."""

import contextlib
import io
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import lm_eval
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.errors import GptFastError, NetworkError, NotFoundError, UsageError
from gptfast_cli.core.evals.tasks.harness_model import HarnessModel, asked, ignored, requests_of
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import Answer, Failure, TaskOptions, TaskRequest, match_tasks
from gptfast_cli.core.evals.tasks.results import Metric, TaskResult, TaskScores
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet

_ONE_PROCESS: Final = "DISABLE_MULTIPROC"  # a forked process has none of the model's threads

_OF_THE_NETWORK: Final = ("Connection", "Connect", "Offline", "Timeout", "LocalEntryNotFound", "MaxRetry")
"""Prefixes of the names of download errors of several libraries."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress output, logging and warnings of the block."""
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
def task_errors(what: str) -> Iterator[None]:
    """Turn any exception of a task into a GptFastError whose message begins with `what`.

    Raises NetworkError if questions cannot be downloaded.
    """
    try:
        yield
    except GptFastError as error:
        error.message = f"{what}: {error.message}"
        raise
    except Exception as error:  # a task is third-party code
        kind = type(error).__name__
        reason = next(iter(str(error).strip().splitlines()), "")
        if kind.startswith(_OF_THE_NETWORK):
            hint = "Questions are downloaded at the first run, which needs a network connection."
            raise NetworkError(f"{what}: {kind}: {reason}", hint) from error
        raise GptFastError(f"{what}: {kind}: {reason}", "--debug shows where in the task it arose.") from error


def load_tasks(options: TaskOptions) -> TaskDict:
    """Load the tasks and groups that names and patterns match.

    Raises NotFoundError for an unknown name (with similar ones) or folder, NetworkError if questions cannot be
    downloaded, GptFastError if a task cannot be built, UsageError for a task that executes generated code.
    """
    if options.include_path is not None and not options.include_path.is_dir():
        raise NotFoundError(
            f"folder {str(options.include_path)!r} not found.", "--include-path takes a folder of YAML."
        )
    loaded = _of_folder_alone(options) or _of_all(options)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(f"Task {name} executes generated code, which is not supported.")
        n_shots = task.get_config("num_fewshot")
        if n_shots is None or (options.n_shots is not None and n_shots != 0):  # 0 in the task is kept
            task.set_config(key="num_fewshot", value=options.n_shots or 0)
        task.set_fewshot_seed(seed=options.seed)
    return loaded


def _of_folder_alone(options: TaskOptions) -> TaskDict | None:
    """The tasks, if the folder has all of them (quick); else None."""
    if options.include_path is None:
        return None
    with quiet(), task_errors(f"Tasks {', '.join(options.names)} cannot be loaded"):
        manager = TaskManager(include_path=str(options.include_path), include_defaults=False)
        if not set(options.names) <= set(manager.all_tasks):
            return None
        try:
            return manager.load(list(options.names))
        except KeyError:  # a group of the folder that refers to other tasks
            return None


def _of_all(options: TaskOptions) -> TaskDict:
    """The tasks among all of the harness and the folder."""
    with quiet():
        manager = TaskManager(include_path=None if options.include_path is None else str(options.include_path))
    names = match_tasks(options.names, manager.all_tasks)
    with quiet(), task_errors(f"Tasks {', '.join(names)} cannot be loaded"):
        return manager.load(names)


_BOOTSTRAPS: Final = 1000
"""Bootstrap samples for standard errors of metrics that are not means: accurate to about 3 %."""


class HarnessTaskRun:
    """A TaskRun of the harness's tasks: requests are built and answers scored by its own code."""

    def __init__(self, loaded: TaskDict, model: HarnessModel, options: TaskOptions) -> None:
        self._tasks: dict[str, Task] = loaded["tasks"]
        self._groups: dict[str, Any] = loaded.get("groups", {})
        self._model = model
        self._options = options
        self.requests: list[TaskRequest] = []
        self.questions: list[tuple[str, int]] = []
        self._places: dict[str, slice] = {}  # slice of each task's requests
        for name, task in self._tasks.items():
            self._build(name, task)
            first = len(self.requests)
            self.requests += requests_of(asked(task.instances))
            self.questions += [(name, instance.doc_id) for instance in asked(task.instances)]
            self._places[name] = slice(first, len(self.requests))

    @property
    def notes(self) -> tuple[str, ...]:
        settings = {name for task in self._tasks.values() for name in ignored(task.config.generation_kwargs or {})}
        notes = []
        if settings:
            notes.append(f"settings of generation without effect here: {', '.join(sorted(settings))}")
        if self._model.has_left_out_system:
            notes.append("the chat template refuses system messages, which were left out")
        return tuple(notes)

    def score_answers(self, answers: Sequence[Answer | Failure | None]) -> TaskScores:
        """Groups are omitted unless all questions of their tasks are answered."""
        for request, answer in zip(self.requests, answers, strict=True):
            if answer is not None and not isinstance(answer, Failure):
                self._model.add_answers({request: answer})
        n_asked = {name: _n_questions(task) for name, task in self._tasks.items()}
        answered = {name: self._answered(name, answers) for name in self._tasks}
        is_whole = all(len(questions) == n_asked[name] for name, questions in answered.items())
        tasks = {name: task for name, task in self._tasks.items() if answered[name]}
        if not tasks:
            return TaskScores((), {}, {})
        has_groups = None not in answers and len(tasks) == len(self._tasks)
        if not is_whole:
            for name, task in tasks.items():
                _keep(task, answered[name])
        with quiet(), task_errors(f"Tasks {', '.join(tasks)} cannot be scored"):
            record = evaluate(
                self._model,
                {"tasks": tasks, "groups": self._groups if has_groups else {}},
                limit=self._options.limit if is_whole else None,
                samples=None if is_whole else {name: answered[name] for name in tasks},
                bootstrap_iters=_BOOTSTRAPS,
            )
        samples = record.pop("samples")
        results = tuple(_result(name, record, n_asked) for name in record["results"])
        return TaskScores(results, record | self._about(), samples)

    def _build(self, name: str, task: Task) -> None:
        """Build the requests of a task, once: a second build would draw other few-shot examples."""
        chat = self._options.chat
        with quiet(), task_errors(f"Task {name} cannot be built"):
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
        """Question numbers whose requests are all answered."""
        missing: dict[int, bool] = defaultdict(bool)
        for instance, answer in zip(asked(self._tasks[name].instances), answers[self._places[name]], strict=True):
            missing[instance.doc_id] |= answer is None or isinstance(answer, Failure)
        return sorted(question for question, is_missing in missing.items() if not is_missing)

    def _about(self) -> dict[str, Any]:
        """Configuration of the run, in the harness's layout."""
        loaded = self._model.request_runner.loaded
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
    """Restrict a task to these questions, renumbered from 0."""
    place = {question: number for number, question in enumerate(questions)}
    kept = [instance for instance in task.instances if instance.doc_id in place]
    for instance in kept:
        instance.doc_id = place[instance.doc_id]
    task._instances = kept  # noqa: SLF001  # there is no public API


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
    """Metrics of a task; the harness names them `acc,none`, with the answer filter after the comma."""
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


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """A TaskSet of the harness."""

    loaded: TaskDict
    options: TaskOptions

    def task_run(self, request_runner: RequestRunner, prompter: Prompter | None) -> TaskRun:
        return HarnessTaskRun(self.loaded, HarnessModel(request_runner, prompter), self.options)


class Harness:
    """The Source of the harness's tasks, which needs the `eval` extra."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        return HarnessTasks(load_tasks(options), options)


PLUG = Harness()
