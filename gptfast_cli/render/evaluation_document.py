"""What was measured of a model's quality, as JSON values."""

from dataclasses import asdict
from typing import Any

from gptfast_cli.core.jobs.eval import Evaluation
from gptfast_cli.core.measure.comparison.comparing import Compared
from gptfast_cli.core.measure.perplexity.results import Perplexity
from gptfast_cli.core.measure.tasks.results import TaskResult, TaskResults
from gptfast_cli.render.json import finite


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Numbers that are none, such as the perplexity of what is impossible, become null."""
    return {
        "model": evaluation.model,
        "scheme": evaluation.scheme,
        "dtype": evaluation.environment.dtype,
        "environment": asdict(evaluation.environment),
        "load_s": evaluation.load_s,
        "interrupted": evaluation.is_interrupted,
        "results": None if evaluation.tasks is None else _results(evaluation.tasks),
        "tasks": None if evaluation.tasks is None else _about(evaluation.tasks),
        "perplexity": None if evaluation.perplexity is None else _perplexity(evaluation.perplexity),
        "divergence": None if evaluation.comparison is None else _divergence(evaluation.comparison),
    }


def _results(tasks: TaskResults) -> dict[str, Any]:
    """Metrics by task; a standard error stands beside its metric as `acc_stderr`."""
    return {result.task: finite(dict(_values(result))) for result in tasks.results}


def _values(result: TaskResult) -> list[tuple[str, float | None]]:
    values: list[tuple[str, float | None]] = []
    for metric in result.metrics:
        values += [(metric.name, metric.value), (f"{metric.name}_stderr", metric.stderr)]
    return values


def _about(tasks: TaskResults) -> dict[str, Any]:
    """How the results came about; of each task, how much of it they are about."""
    return {
        "beginnings": tasks.beginnings,
        "seed": tasks.seed,
        "partial": tasks.is_partial,
        "notes": list(tasks.notes),
        "failures": [
            {"task": failed.task, "question": failed.number, "reason": failed.reason} for failed in tasks.failures
        ],
        "folder": None if tasks.folder is None else str(tasks.folder),
        "each": {
            result.task: {
                "n": result.n,
                "n_all": result.n_all,
                "n_shots": result.n_shots,
                "whole": result.is_whole,
                "group": result.is_group,
            }
            for result in tasks.results
        },
    }


def _perplexity(found: Perplexity) -> object:
    return finite({**asdict(found), "partial": found.is_partial})


def _divergence(found: Compared) -> object:
    """The numbers, which model predicts the text better beyond the noise, and what was compared."""
    return finite(
        {
            **asdict(found.divergence),
            "better": found.divergence.better,
            "model": asdict(found.model),
            "reference": asdict(found.reference),
            "protocol": found.protocol,
            "n_windows": found.n_windows,
            "n_windows_all": found.n_windows_all,
            "itself": found.is_itself,
            "partial": found.is_partial,
        }
    )
