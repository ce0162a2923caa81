"""The bundled tasks: a choice, a word and a sum, about texts such as the bundled models write.

They need no network and nothing else installed; `bundled/recipe/questions.py` has made them, answers and all.
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
    Likelihood,
    LikelihoodAnswer,
    TaskOptions,
    TaskRequest,
    resolved_task,
)
from gptfast_cli.core.evals.tasks.results import Marks, TaskResult, mean
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet

_ALL: Final = "bundled"
_MOST_TOKENS: Final = 48  # of a sum worked out

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a row is asked and marked.

    asks:  the requests of a row; marks: what their answers are worth, by metric
    """

    asks: Callable[[Row], list[TaskRequest]]
    marks: Callable[[Row, Sequence[Any]], dict[str, float]]


def _choices(row: Row) -> list[TaskRequest]:
    return [Likelihood(row["context"], choice) for choice in row["choices"]]


def _mark_choice(row: Row, answers: Sequence[LikelihoodAnswer]) -> dict[str, float]:
    """Whether the right one is the most probable, and whether it is so for each byte of it."""
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
    "bundled-cloze": _Kind(lambda row: [Likelihood(row["context"], row["word"])], _mark_word),
    "bundled-sums": _Kind(lambda row: [GenerationRequest(row["prompt"], ("\n", ","), _MOST_TOKENS, GREEDY)], _mark_sum),
}


@dataclass(frozen=True, slots=True)
class _Question:
    """A row of a task, and where its requests are among all."""

    task: str
    number: int
    row: Row
    place: slice


class BundledTaskRun:
    """See TaskRun."""

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
        """See TaskRun."""
        return [(each.task, each.number) for each in self._asked for _ in self.requests[each.place]]

    def marked(self, answers: Sequence[Answer | Failure | None]) -> Marks:
        """See TaskRun."""
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in self._n_all}
        for question in self._asked:
            own = answers[question.place]
            if not any(answer is None or isinstance(answer, Failure) for answer in own):
                samples[question.task].append(_sample(question, own, self.requests[question.place]))
        results = tuple(self._result(name, own) for name, own in samples.items() if own)
        return Marks(results, _record(results), samples)

    def _result(self, name: str, samples: Sequence[Row]) -> TaskResult:
        n_asked = sum(question.task == name for question in self._asked)
        metrics = tuple(mean(metric, [sample[metric] for sample in samples]) for metric in samples[0]["metrics"])
        return TaskResult(name, metrics, len(samples), self._n_all[name], 0, is_whole=len(samples) == n_asked)


@dataclass(frozen=True, slots=True)
class BundledTasks:
    """See TaskSet."""

    names: tuple[str, ...]
    limit: float | None

    def exam(self, answering: RequestRunner, prompter: Prompter | None) -> TaskRun:  # noqa: ARG002  # texts for any model
        """See TaskSet."""
        return BundledTaskRun(self.names, self.limit)


class Bundled:
    """See Source."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """See Source; raises UsageError for what is for the harness's tasks alone."""
        if options.n_shots or options.chat.chat or options.chat.system or options.include_path is not None:
            raise UsageError(
                "The bundled tasks take no examples, no chat, no --system and no --include-path.",
                "Name tasks of lm-evaluation-harness with --tasks, or leave these options out.",
            )
        names = [each for name in options.names or (_ALL,) for each in (_KINDS if name == _ALL else (name,))]
        return BundledTasks(tuple(resolved_task(names, tuple(_KINDS))), options.limit)


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
    """A question with its answers and marks, in the harness's words."""
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
        case Likelihood(context, continuation):
            return context, continuation
        case GenerationRequest(prompt, until, max_tokens):
            return prompt, {"until": list(until), "max_gen_toks": max_tokens, "do_sample": False}
        case _:
            raise AssertionError(request)


def _record(results: Sequence[TaskResult]) -> dict[str, Any]:
    """The numbers, as the harness writes them: a filter of answers, none here, behind the comma."""
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
