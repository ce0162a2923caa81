"""What was measured of a model's quality, for a person: the model, a table for each part, and what belongs to it."""

from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.jobs.eval import Evaluation
from gptfast_cli.core.measure.comparison.comparing import Compared
from gptfast_cli.core.measure.perplexity.results import Perplexity
from gptfast_cli.core.measure.tasks.results import Metric, TaskResult, TaskResults
from gptfast_cli.render.divergence_table import divergence_sides, divergence_table, divergence_verdict
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.numbers import count
from gptfast_cli.render.page import wrapped
from gptfast_cli.render.perplexity_table import perplexity_notes, perplexity_table
from gptfast_cli.render.table import Table, aligned
from gptfast_cli.render.terminal import printable, styled

_DIM: Final = "2"
_SHOWN_FAILURES: Final = 5
_HEADINGS: Final = ("task", "shots", "n", "metric", "value", "± stderr")


def write_evaluation(evaluation: Evaluation, stream: TextIO) -> None:
    """Write it; a part that was interrupted says so."""
    _write_dim(f"{evaluation.model}: {count(evaluation.n_params)} parameters, {evaluation.scheme}", stream)
    if evaluation.tasks is not None:
        _write_tasks(evaluation.tasks, stream)
    if evaluation.perplexity is not None:
        _write_perplexity(evaluation.perplexity, stream)
    if evaluation.comparison is not None:
        _write_comparison(evaluation.comparison, stream)
    _write_dim(machine_line(evaluation.environment), stream)
    stream.flush()


def _write_tasks(tasks: TaskResults, stream: TextIO) -> None:
    rows = [row for result in tasks.results for row in _rows(result)]
    table = Table(_HEADINGS, tuple(rows), "<>><>>")
    _write_table(table, stream)
    if tasks.is_partial:
        stream.write("PARTIAL: interrupted, these are the questions that had been answered.\n")
    for line in _failures(tasks):
        stream.write(f"{printable(line)}\n")
    _write_dim("; ".join(_about(tasks)), stream)


def _failures(tasks: TaskResults) -> Iterator[str]:
    """Questions that could not be answered, those of a task with one reason together."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for failed in tasks.failures:
        numbers.setdefault((failed.task, failed.reason), []).append(failed.number)
    for (task, reason), own in numbers.items():
        shown = ", ".join(map(str, own[:_SHOWN_FAILURES])) + (" …" if len(own) > _SHOWN_FAILURES else "")
        questions = "question" if len(own) == 1 else f"{len(own):,} questions:"
        yield from wrapped(f"FAILED: {task}, {questions} {shown}: {reason}")


def _write_perplexity(found: Perplexity, stream: TextIO) -> None:
    _write_table(perplexity_table(found), stream)
    if found.is_partial:
        stream.write("PARTIAL: interrupted, this is the perplexity of the windows that had been read.\n")
    _write_dim("; ".join(perplexity_notes(found)), stream)


def _write_comparison(found: Compared, stream: TextIO) -> None:
    _write_table(divergence_table(found), stream)
    if found.is_partial:
        stream.write("PARTIAL: interrupted, this is what both had read.\n")
    stream.write("".join(f"{line}\n" for line in wrapped(divergence_verdict(found))))
    _write_dim(divergence_sides(found), stream)


def _write_table(table: Table, stream: TextIO) -> None:
    stream.write("\n" + "".join(f"{printable(line)}\n" for line in aligned(table)) + "\n")


def _rows(result: TaskResult) -> Iterator[tuple[str, ...]]:
    names = (result.task, "" if result.n_shots is None else str(result.n_shots), _n(result))
    for metric in result.metrics:
        yield (*names, metric.name, *_cells(metric))
        names = ("", "", "")


def _n(result: TaskResult) -> str:
    """Questions that the numbers are of; where they are not all, also how many there are."""
    if result.is_group:
        return ""
    return f"{result.n:,}" if result.n == result.n_all else f"{result.n:,} of {result.n_all:,}"


def _cells(metric: Metric) -> tuple[str, str]:
    return _figure(metric.value), "" if metric.stderr is None else _figure(metric.stderr)


def _figure(value: float) -> str:
    """Four decimals; of a large number as many digits as matter."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def _about(tasks: TaskResults) -> Iterator[str]:
    yield tasks.beginnings
    yield f"seed {tasks.seed}"
    if tasks.n_found:
        yield f"{tasks.n_found:,} answers from an earlier run"
    yield from tasks.notes
    if tasks.folder is not None:
        yield f"results and samples are in {tasks.folder}"


def _write_dim(sentence: str, stream: TextIO) -> None:
    for line in wrapped(sentence):
        stream.write(styled(line, _DIM, stream) + "\n")
