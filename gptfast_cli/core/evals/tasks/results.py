"""Results of tasks, and their files in the layout of lm-evaluation-harness.

A folder per model holds `results_DATE.json` and `samples_TASK_DATE.jsonl`, one line per question.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gptfast_cli.core.files import write_whole


@dataclass(frozen=True, slots=True)
class Metric:
    """A named number; `stderr` is the standard error of the mean, None if undefined."""

    name: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Result of a task or a group.

    n:         answered questions, of `n_all` in the task
    n_shots:   few-shot examples; None for a group whose tasks differ
    is_whole:  all requested questions were answered
    is_group:  aggregates other tasks
    """

    task: str
    metrics: tuple[Metric, ...]
    n: int
    n_all: int
    n_shots: int | None = 0
    is_whole: bool = True
    is_group: bool = False

    @property
    def values(self) -> Mapping[str, float | None]:
        """Each metric by its name, and its standard error under `NAME_stderr`."""
        return {
            name: value
            for each in self.metrics
            for name, value in ((each.name, each.value), (f"{each.name}_stderr", each.stderr))
        }


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores that a task source computes from the answers.

    record:  results in the harness's layout, JSON values
    samples: questions with their answers in the harness's layout, by task
    """

    results: tuple[TaskResult, ...]
    record: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class FailedQuestion:
    """A question without an answer, and the reason; `number` counts from 0, as in the sample files."""

    task: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskResults:
    """Results of a task run.

    bos_rules: how BOS is added, in words
    notes:     remarks on how to read the numbers
    folder:    folder of the result files
    n_found:   answers found in the response cache
    failures:  questions without an answer
    """

    results: tuple[TaskResult, ...]
    bos_rules: str
    seed: int
    is_partial: bool
    n_found: int = 0
    notes: tuple[str, ...] = ()
    failures: tuple[FailedQuestion, ...] = ()
    folder: Path | None = None

    @property
    def by_task(self) -> Mapping[str, TaskResult]:
        """The results by the names of their tasks."""
        return {result.task: result for result in self.results}

    @property
    def values(self) -> Mapping[str, Mapping[str, float | None]]:
        """The metrics of each task by name, as in `TaskResult.values`."""
        return {result.task: result.values for result in self.results}


def mean(name: str, values: Sequence[float]) -> Metric:
    """Mean and standard error s / sqrt(n), s with n - 1."""
    n = len(values)
    average = math.fsum(values) / n
    if n == 1:
        return Metric(name, average)
    variance = math.fsum((value - average) ** 2 for value in values) / (n - 1)
    return Metric(name, average, math.sqrt(variance / n))


def write_records(output_path: Path, model: str, marks: TaskScores) -> Path:
    """Write the result files; returns the model's folder. Raises DiskFullError."""
    folder = output_path / re.sub(r'["<>:/|\\?*\[\]]+', "__", model)
    date = datetime.now().astimezone().replace(tzinfo=None).isoformat().replace(":", "-")
    for task, samples in marks.samples.items():
        lines = [json.dumps(_flat(sample), default=_plain, ensure_ascii=False) + "\n" for sample in samples]
        write_whole(folder / f"samples_{task}_{date}.jsonl", "".join(lines))
    about = {"model_name": model, "model_name_sanitized": folder.name}
    record = json.dumps(dict(marks.record) | about, indent=2, default=_plain, ensure_ascii=False)
    write_whole(folder / f"results_{date}.json", record)
    return folder


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample with named arguments and answers as text, so that all lines of a file have the same types."""
    return {
        **sample,
        "arguments": {
            f"gen_args_{n}": {f"arg_{m}": argument for m, argument in enumerate(arguments)}
            for n, arguments in enumerate(sample["arguments"])
        },
        "resps": _texts(sample["resps"]),
        "filtered_resps": _texts(sample["filtered_resps"]),
        "target": str(sample["target"]),
    }


def _texts(value: object) -> object:
    return [_texts(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _plain(value: Any) -> object:  # noqa: ANN401  # any value of a task's documents
    """JSON value for NumPy scalars, sets and other objects."""
    if hasattr(value, "item"):
        return value.item()
    return sorted(value, key=str) if isinstance(value, set) else str(value)
