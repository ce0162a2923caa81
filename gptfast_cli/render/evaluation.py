"""Results of `eval`: tasks, perplexity and comparison as tables, and as JSON."""

import math
from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.evals.comparison import Compared, Comparisons, ModelSummary
from gptfast_cli.core.evals.divergence import Divergence
from gptfast_cli.core.evals.perplexity import Perplexity
from gptfast_cli.core.evals.tasks.results import FailedQuestion, Metric, TaskResult, TaskResults
from gptfast_cli.core.jobs.eval import Evaluation
from gptfast_cli.render.json import Keys
from gptfast_cli.render.numbers import count, machine_line, nats, share
from gptfast_cli.render.terminal import Table, aligned, printable, wrapped, write_dim

_DIVERGENCE_HEADINGS: Final = ("divergence", "value", "")


def divergence_table(found: Compared) -> Table:
    """A row for each number."""
    bits = (
        "bits",
        f"{found.model.bits_per_weight:.2f}",
        f"a weight, the reference {found.reference.bits_per_weight:.2f}",
    )
    return Table(_DIVERGENCE_HEADINGS, (*_divergence_rows(found.divergence), bits), "<><")


_MODEL_HEADINGS: Final = ("model", "bits", "KLD", "p99", "same top", "perplexity ratio")


def models_table(found: Comparisons) -> Table:
    """A row for each of several models."""
    rows = (
        (
            each.model.name,
            f"{each.model.bits_per_weight:.2f}",
            nats(each.divergence.kld_mean),
            nats(each.divergence.kld_p99),
            share(each.divergence.same_top1),
            _ratio(each.divergence),
        )
        for each in found.each
    )
    return Table(_MODEL_HEADINGS, tuple(rows), "<>>>>>")


def _ratio(divergence: Divergence) -> str:
    """The perplexity ratio and its interval, if it has one."""
    low, high = divergence.ppl_ratio_low, divergence.ppl_ratio_high
    if low is None or high is None:
        return f"{divergence.ppl_ratio:.4f}"
    decimals = _decimals(high - low)
    return f"{divergence.ppl_ratio:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def divergence_sides(found: Compared) -> str:
    """The two models and the text that they are compared on."""
    return f"{_side(found.model)}, {_reference_and_text(found)}"


def _reference_and_text(found: Compared) -> str:
    text = "the bundled text" if found.protocol is None else f"the text by {found.protocol}"
    windows = f", {found.n_windows:,} of {found.n_windows_all:,} windows" if found.is_partial else ""
    return f"against the reference, {_side(found.reference)}: {found.divergence.tokens:,} tokens of {text}{windows}"


def divergence_verdict(found: Compared) -> str:
    """Which of the two predicts the text better; no answer where the ratio has no interval."""
    divergence, model, reference = found.divergence, found.model.name, found.reference.name
    if found.is_itself:
        return f"{model} was compared with itself."
    if divergence.ppl_ratio_low is None or divergence.ppl_ratio_high is None:
        return "The perplexity ratio has no interval: neither model is shown to be better."
    ratio = f"x {_ratio(divergence)}"
    match divergence.better:
        case None:
            return f"No difference in perplexity beyond the noise: {ratio}."
        case "reference":
            return f"The reference, {reference}, predicts the text better: perplexity {ratio}."
        case "other":
            return f"{model} predicts the text better than the reference: perplexity {ratio}."


def _divergence_rows(found: Divergence) -> Iterator[tuple[str, str, str]]:
    yield "KLD", nats(found.kld_mean), "mean, in nats"
    yield "KLD p99", nats(found.kld_p99), ""
    yield "KLD max", nats(found.kld_max), ""
    yield "same top", share(found.same_top1), "both put the same token first"
    yield "flips", share(found.flips), "just one of both puts the text's token first"
    yield "RMS change", share(found.rms_p_change), "of the probability of the text's token"
    yield "alpha", f"{found.alpha:.4f}", "the share of tokens accepted as the reference's draft"
    yield "perplexity", f"{found.ppl_other:.4f}", f"the reference {found.ppl_reference:.4f}"


def _side(side: ModelSummary) -> str:
    return ", ".join([f"{side.name} ({side.scheme} {side.dtype} on {side.device}", side.backend, *side.roundings]) + ")"


def _decimals(width: float) -> int:
    """Decimals with which an interval of this width has two digits, 4 to 8."""
    return min(max(4, 2 - math.floor(math.log10(width))), 8) if 0 < width < math.inf else 4


_PERPLEXITY_HEADINGS: Final = ("protocol", "perplexity", "± stderr", "tokens", "windows")


def perplexity_table(found: Perplexity) -> Table:
    """The table of one row."""
    windows = f"{found.n_windows:,}" + (f" of {found.n_windows_all:,}" if found.is_partial else "")
    row = (found.protocol, f"{found.value:,.4f}", _error(found.stderr), f"{found.n_tokens:,}", windows)
    return Table(_PERPLEXITY_HEADINGS, (row,), "<" + ">" * (len(_PERPLEXITY_HEADINGS) - 1))


def perplexity_notes(found: Perplexity) -> Iterator[str]:
    """What belongs to the number."""
    yield f"perplexity of a {found.unit}"
    if found.stderr is not None:
        yield "± from 20 batches of tokens in a row"
    if found.stderr_tokens is not None:
        yield f"± {_error(found.stderr_tokens)} if each token stood for itself"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:,.4f}"


_SHOWN_FAILURES: Final = 5
_HEADINGS: Final = ("task", "shots", "n", "metric", "value", "± stderr")


def write_evaluation(evaluation: Evaluation, stream: TextIO) -> None:
    """Write it; a part that was interrupted says so."""
    write_dim(f"{evaluation.model}: {count(evaluation.n_params)} parameters, {evaluation.scheme}", stream)
    if evaluation.tasks is not None:
        _write_tasks(evaluation.tasks, stream)
    if evaluation.perplexity is not None:
        _write_perplexity(evaluation.perplexity, stream)
    if evaluation.comparison is not None:
        _write_comparison(evaluation.comparison, stream)
    write_dim(machine_line(evaluation.environment), stream)
    stream.flush()


def _write_tasks(tasks: TaskResults, stream: TextIO) -> None:
    rows = [row for result in tasks.results for row in _rows(result)]
    table = Table(_HEADINGS, tuple(rows), "<>><>>")
    _write_table(table, stream)
    if tasks.is_partial:
        stream.write("PARTIAL: interrupted, these are the questions that had been answered.\n")
    for line in _failures(tasks):
        stream.write(f"{printable(line)}\n")
    write_dim("; ".join(_about(tasks)), stream)


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
    write_dim("; ".join(perplexity_notes(found)), stream)


def _write_comparison(found: Comparisons, stream: TextIO) -> None:
    is_one = len(found.each) == 1
    _write_table(divergence_table(found.first) if is_one else models_table(found), stream)
    if found.is_partial:
        stream.write("PARTIAL: interrupted, this is what all had read.\n")
    if is_one:
        stream.write("".join(f"{line}\n" for line in wrapped(divergence_verdict(found.first))))
    write_dim(divergence_sides(found.first) if is_one else _reference_and_text(found.first), stream)


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
    yield tasks.bos_rules
    yield f"seed {tasks.seed}"
    if tasks.n_found:
        yield f"{tasks.n_found:,} answers from an earlier run"
    yield from tasks.notes
    if tasks.folder is not None:
        yield f"results and samples are in {tasks.folder}"


KEYS: Final[Keys] = {
    Evaluation: (
        "model scheme dtype=environment.dtype environment load_s interrupted=is_interrupted results=tasks.values tasks "
        "perplexity divergence=comparison.first comparisons=comparison.each"
    ),
    TaskResults: "beginnings=bos_rules seed partial=is_partial notes failures folder each=by_task",
    FailedQuestion: "task question=number reason",
    TaskResult: "n n_all n_shots whole=is_whole group=is_group",
    Perplexity: "* partial=is_partial",
    Compared: (
        "*divergence better=divergence.better model reference protocol n_windows n_windows_all itself=is_itself "
        "partial=is_partial"
    ),
}
