"""The bundled tasks: multiple choice, cloze and sums, in the style of the bundled models' training texts.

They need no network and no extra package; the training recipe's `questions.py` generates them.
"""

import importlib.resources
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import (
    GREEDY,
    Answer,
    Failure,
    GenerationRequest,
    LikelihoodAnswer,
    LikelihoodRequest,
    TaskOptions,
    TaskRequest,
    match_tasks,
)
from gptfast_cli.core.evals.tasks.results import TaskResult, TaskScores, mean
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet

_ALL: Final = "bundled"
_MOST_TOKENS: Final = 48  # of a sum worked out

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a row is asked and scored.

    asks:  requests of a row
    marks: scores of their answers, by metric
    """

    asks: Callable[[Row], list[TaskRequest]]
    marks: Callable[[Row, Sequence[Any]], dict[str, float]]


def _choices(row: Row) -> list[TaskRequest]:
    return [LikelihoodRequest(row["context"], choice) for choice in row["choices"]]


def _mark_choice(row: Row, answers: Sequence[LikelihoodAnswer]) -> dict[str, float]:
    """acc: the right choice has the largest log-probability; acc_norm: the largest per byte."""
    logprobs = [answer.logprob for answer in answers]
    by_byte = [each / len(choice.encode()) for each, choice in zip(logprobs, row["choices"], strict=True)]
    return {
        name: float(_largest(values) == row["answer"]) for name, values in (("acc", logprobs), ("acc_norm", by_byte))
    }


def _mark_word(_: Row, answers: Sequence[LikelihoodAnswer]) -> dict[str, float]:
    (answer,) = answers
    return {"acc": float(answer.is_greedy), "nats": -answer.logprob}


def _mark_sum(row: Row, answers: Sequence[str]) -> dict[str, float]:
    (answer,) = answers
    return {"exact_match": float(answer.strip() == row["answer"].strip())}


_KINDS: Final[Mapping[str, _Kind]] = {
    "bundled-choice": _Kind(_choices, _mark_choice),
    "bundled-cloze": _Kind(lambda row: [LikelihoodRequest(row["context"], row["word"])], _mark_word),
    "bundled-sums": _Kind(lambda row: [GenerationRequest(row["prompt"], ("\n", ","), _MOST_TOKENS, GREEDY)], _mark_sum),
}


@dataclass(frozen=True, slots=True)
class _Question:
    """A row of a task, and the slice of its requests."""

    task: str
    number: int
    row: Row
    place: slice


class BundledTaskRun:
    """A TaskRun of bundled tasks."""

    notes: tuple[str, ...] = ()

    def __init__(self, names: Sequence[str], limit: float | None) -> None:
        self._n_all: dict[str, int] = {}
        self._asked: list[_Question] = []
        self.requests: list[TaskRequest] = []
        for name in names:
            rows = _rows(name)
            self._n_all[name] = len(rows)
            for number, row in enumerate(rows[: _n_questions(len(rows), limit)]):
                first = len(self.requests)
                self.requests += _KINDS[name].asks(row)
                self._asked.append(_Question(name, number, row, slice(first, len(self.requests))))

    @property
    def questions(self) -> Sequence[tuple[str, int]]:
        return [(each.task, each.number) for each in self._asked for _ in self.requests[each.place]]

    def score_answers(self, answers: Sequence[Answer | Failure | None]) -> TaskScores:
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in self._n_all}
        for question in self._asked:
            own = answers[question.place]
            if not any(answer is None or isinstance(answer, Failure) for answer in own):
                samples[question.task].append(_sample(question, own, self.requests[question.place]))
        results = tuple(self._result(name, own) for name, own in samples.items() if own)
        return TaskScores(results, _record(results), samples)

    def _result(self, name: str, samples: Sequence[Row]) -> TaskResult:
        n_asked = sum(question.task == name for question in self._asked)
        metrics = tuple(mean(metric, [sample[metric] for sample in samples]) for metric in samples[0]["metrics"])
        return TaskResult(name, metrics, len(samples), self._n_all[name], 0, is_whole=len(samples) == n_asked)


@dataclass(frozen=True, slots=True)
class BundledTasks:
    """A TaskSet of bundled tasks."""

    names: tuple[str, ...]
    limit: float | None

    def task_run(self, request_runner: RequestRunner, prompter: Prompter | None) -> TaskRun:  # noqa: ARG002  # texts for any model
        return BundledTaskRun(self.names, self.limit)


class Bundled:
    """The Source of the bundled tasks."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """See Source; raises UsageError for what is for the harness's tasks alone."""
        if options.n_shots or options.chat.chat or options.chat.system or options.include_path is not None:
            raise UsageError(
                "The bundled tasks do not support --num-fewshot, --chat, --system and --include-path.",
                "Choose tasks of lm-evaluation-harness with --tasks, or omit these options.",
            )
        names = [each for name in options.names or (_ALL,) for each in (_KINDS if name == _ALL else (name,))]
        return BundledTasks(tuple(match_tasks(names, tuple(_KINDS))), options.limit)


def _rows(name: str) -> list[Row]:
    file = importlib.resources.files("gptfast_cli") / "bundled" / "tasks" / f"{name.removeprefix('bundled-')}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _n_questions(n_all: int, limit: float | None) -> int:
    if limit is None:
        return n_all
    return math.ceil(n_all * limit) if limit < 1 else int(limit)


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _sample(question: _Question, answers: Sequence[Any], requests: Sequence[TaskRequest]) -> dict[str, Any]:
    """A question with its answers and scores, in the harness's layout."""
    marks = _KINDS[question.task].marks(question.row, answers)
    said = [(a.logprob, a.is_greedy) if isinstance(a, LikelihoodAnswer) else a for a in answers]
    return {
        "doc_id": question.number,
        "doc": dict(question.row),
        "target": question.row.get("answer", question.row.get("word")),
        "arguments": [_arguments(request) for request in requests],
        "resps": [[each] for each in said],
        "filtered_resps": said,
        "filter": "none",
        "metrics": list(marks),
        **marks,
    }


def _arguments(request: TaskRequest) -> tuple[object, ...]:
    match request:
        case LikelihoodRequest(context, continuation):
            return context, continuation
        case GenerationRequest(prompt, until, max_tokens):
            return prompt, {"until": list(until), "max_gen_toks": max_tokens, "do_sample": False}
        case _:
            raise AssertionError(request)


def _record(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Results in the harness's layout; the name after the comma is that of the answer filter."""
    return {
        "results": {result.task: {"alias": result.task} | dict(_named(result)) for result in results},
        "n-samples": {result.task: {"original": result.n_all, "effective": result.n} for result in results},
        "n-shot": {result.task: result.n_shots for result in results},
    }


def _named(result: TaskResult) -> Iterator[tuple[str, float | str]]:
    for metric in result.metrics:
        yield f"{metric.name},none", metric.value
        yield f"{metric.name}_stderr,none", "N/A" if metric.stderr is None else metric.stderr


PLUG = Bundled()
