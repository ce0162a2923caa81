"""Results of tasks, and the file of records beside them.

A folder for each model holds `results_DATE.json` with the numbers of a run, and `samples_TASK_DATE.jsonl` with a line
for each question.
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
    """A number by its name; `stderr` is the standard error of the mean, None where there is none to be had."""

    name: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task, or a group of them.

    n:         questions that were asked and marked, of `n_all` that there are
    n_shots:   solved examples before each of them; None of a group whose tasks differ
    is_whole:  whether every question that was to be asked has been
    is_group:  whether it is made up of other tasks
    """

    task: str
    metrics: tuple[Metric, ...]
    n: int
    n_all: int
    n_shots: int | None = 0
    is_whole: bool = True
    is_group: bool = False


@dataclass(frozen=True, slots=True)
class Marks:
    """What a source makes of the answers to its requests.

    record:  the results as the harness lays them out, JSON values by key
    samples: every question with its answers, the same way, by task
    """

    results: tuple[TaskResult, ...]
    record: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class FailedQuestion:
    """A question that is in no result, and why; `number` counts from 0, as in files of samples."""

    task: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskResults:
    """The results of all tasks, and how they came about.

    beginnings: how texts begin, in words
    notes:      what else a reader of the numbers has to know
    folder:     where the files of results and samples were written
    n_found:    answers that an earlier run had left
    failures:   questions that could not be answered
    """

    results: tuple[TaskResult, ...]
    beginnings: str
    seed: int
    is_partial: bool
    n_found: int = 0
    notes: tuple[str, ...] = ()
    failures: tuple[FailedQuestion, ...] = ()
    folder: Path | None = None


def mean(name: str, values: Sequence[float]) -> Metric:
    """The mean of marks and its standard error, s / sqrt(n) with s over n - 1."""
    n = len(values)
    average = math.fsum(values) / n
    if n == 1:
        return Metric(name, average)
    variance = math.fsum((value - average) ** 2 for value in values) / (n - 1)
    return Metric(name, average, math.sqrt(variance / n))


def write_records(output_path: Path, model: str, marks: Marks) -> Path:
    """Write them; returns the model's folder. Raises DiskFullError."""
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
    """A sample whose arguments are named and whose answers are text, so that all lines of a file have one shape."""
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


def _plain(value: Any) -> object:  # noqa: ANN401  # whatever a task puts into its documents
    """A value that JSON has no word for: a number of NumPy's, a set, or a text."""
    if hasattr(value, "item"):
        return value.item()
    return sorted(value, key=str) if isinstance(value, set) else str(value)
