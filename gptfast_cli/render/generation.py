"""Numbers of `generate`: the block below one prompt's samples, and what became of a file of prompts."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from gptfast_cli.core.events import Event, Record
from gptfast_cli.render.numbers import digits, duration, gigabytes_per_second, share, size, tokens_per_second
from gptfast_cli.render.progress import View
from gptfast_cli.render.terminal import write_block

if TYPE_CHECKING:  # they load PyTorch
    from gptfast_cli.core.bench.throughput import Metrics, SpeculationReport
    from gptfast_cli.core.jobs.generate import GenerateResult
    from gptfast_cli.core.jobs.generate_batch import BatchResult

_N_HISTOGRAM_BINS = 7  # that fit into a line
_N_POSITIONS = 5


def write_generation(generation: "GenerateResult", stream: TextIO) -> None:
    """Write the block of numbers, within 80 columns; a number that was not measured is left out."""
    write_block(_generation_rows(generation), stream)


def write_batch(batch: "BatchResult", stream: TextIO, *, can_go_on: bool) -> None:
    """Write how many rows are done and their speed, within 80 columns; `can_go_on`: the command resumes."""
    write_block(_batch_rows(batch), stream)
    if batch.is_interrupted:
        goes_on = "; the same command goes on from there" if can_go_on else ""
        stream.write(f"Interrupted: {batch.n_done:,} of {batch.n_rows:,} rows are done{goes_on}.\n")
        stream.flush()


def records_view(stream: TextIO) -> View:
    """A view that writes each record as a line of ASCII."""

    def write(event: Event) -> None:
        if isinstance(event, Record):
            stream.write(json.dumps(event.fields, allow_nan=False) + "\n")
            stream.flush()

    return write


def without_records(view: View) -> View:
    """The view of all events but records, which go to a file."""

    def pass_on(event: Event) -> None:
        if not isinstance(event, Record):
            view(event)

    return pass_on


def speculation_rows(report: "SpeculationReport") -> Iterator[tuple[str, ...]]:
    """Label and cells of each line about speculation: tokens per round, acceptance, and the shares of its time."""
    length = "k adapted" if report.k is None else f"k {report.k}"
    draft = f"{report.draft}, whole on each rank" if report.replicated else report.draft
    if report.tau is None:
        yield "draft", draft, length, "no rounds"
        return
    alpha = "" if report.alpha is None else f"alpha {report.alpha:.3f}"
    yield "draft", draft, length, f"{digits(report.tau)} tokens a round", alpha
    counts = ", ".join(f"{n_accepted}: {n / report.rounds:.0%}" for n_accepted, n in _binned(report.accepted_histogram))
    yield "accepted", f"{report.rounds:,} rounds", counts
    if report.acceptance:
        overall, conditional = zip(*((each.unconditional, each.conditional) for each in report.acceptance), strict=True)
        yield "position", "conditional", _percents(conditional), f"overall {_percents(overall)}"
    yield "time", ", ".join(f"{part} {part_share:.0%}" for part, part_share in report.shares.items())


def _generation_rows(generation: "GenerateResult") -> Iterator[tuple[str, ...]]:
    metrics = generation.metrics
    if metrics.decode_tok_s is not None:
        yield "decode", tokens_per_second(metrics.decode_tok_s), _token_times(metrics), _bandwidth(metrics)
    if metrics.aggregate_tok_s is not None and len(generation.samples) > 1:
        yield "together", tokens_per_second(metrics.aggregate_tok_s), f"{len(generation.samples)} samples"
    if metrics.prefill_tok_s is not None:
        yield "prefill", tokens_per_second(metrics.prefill_tok_s), _labelled("TTFT", metrics.ttft_s)
    if generation.speculation is not None:
        yield from speculation_rows(generation.speculation)
    peak = f"peak memory {size(metrics.peak_memory_bytes)}"
    draft = _labelled("draft", None if generation.speculation is None else generation.speculation.draft_load_s)
    yield "load", duration(metrics.load_s), draft, _labelled("compile", metrics.compile_s), peak
    for each in generation.ranks or ():
        collectives = "" if each.collective_share is None else f"collectives {share(each.collective_share)} of the time"
        rate = "" if each.decode_gbps is None else gigabytes_per_second(each.decode_gbps)
        yield f"rank {each.rank}", rate, collectives, f"peak memory {size(each.peak_memory_bytes)}"
    yield "tokens", _token_counts(generation), _finish_reasons(generation), f"seed {generation.seed}"


def _token_times(metrics: "Metrics") -> str:
    if metrics.tpot_p50_s is None or metrics.tpot_p95_s is None:
        return ""
    return f"TPOT p50 {duration(metrics.tpot_p50_s)}, p95 {duration(metrics.tpot_p95_s)}"


def _bandwidth(metrics: "Metrics") -> str:
    if metrics.decode_gbps is None:
        return ""
    mbu = "" if metrics.mbu is None else f" ({metrics.mbu:.0%} MBU)"
    return gigabytes_per_second(metrics.decode_gbps) + mbu


def _labelled(label: str, seconds: float | None) -> str:
    return "" if seconds is None else f"{label} {duration(seconds)}"


def _token_counts(generation: "GenerateResult") -> str:
    n_prompt = sum(sample.prompt_tokens for sample in generation.samples)
    n_generated = sum(len(sample.token_ids) for sample in generation.samples)
    return f"{n_prompt:,} + {n_generated:,}"


def _finish_reasons(generation: "GenerateResult") -> str:
    """Why the samples ended: `ended by eos`, or `ended by length (3), eos (1)`."""
    reasons = Counter(sample.finish_reason for sample in generation.samples)
    if len(generation.samples) == 1:
        return f"ended by {generation.samples[0].finish_reason}"
    return "ended by " + ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())


def _batch_rows(batch: "BatchResult") -> Iterator[tuple[str, ...]]:
    bad = f"{batch.n_bad:,} bad" if batch.n_bad else ""
    found = f"{batch.n_found:,} from an earlier run" if batch.n_found else ""
    yield "rows", f"{batch.n_done:,} of {batch.n_rows:,}", bad, found
    if batch.metrics is not None:
        yield from _batch_speeds(batch.metrics)
        if batch.speculation is not None:
            yield from speculation_rows(batch.speculation)
    if batch.n_tokens:
        tokens = f"{batch.n_prompt_tokens:,} + {batch.n_tokens:,}"
        yield "tokens", tokens, f"{duration(batch.seconds)} in all", f"seed {batch.seed}"


def _batch_speeds(metrics: "Metrics") -> Iterator[tuple[str, ...]]:
    if metrics.aggregate_tok_s is not None:
        yield "decode", tokens_per_second(metrics.aggregate_tok_s), "all rows together"
    if metrics.prefill_tok_s is not None:
        yield "prefill", tokens_per_second(metrics.prefill_tok_s)
    peak = f"peak memory {size(metrics.peak_memory_bytes)}"
    yield "load", duration(metrics.load_s), _labelled("compile", metrics.compile_s), peak


def _percents(shares: Sequence[float | None]) -> str:
    """The first few shares: `91 80 - 65 %`."""
    percents = ["-" if each is None else f"{each * 100:.0f}" for each in shares[:_N_POSITIONS]]
    if len(shares) > _N_POSITIONS:
        percents[-1] = "\N{HORIZONTAL ELLIPSIS}"
    return " ".join(percents) + " %"


def _binned(histogram: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Rounds by the number of accepted tokens; the bins of a long histogram double: 0, 1, 2, 3-4, 5-8."""
    if len(histogram) <= _N_HISTOGRAM_BINS:
        yield from ((str(n_accepted), n) for n_accepted, n in enumerate(histogram))
        return
    begin, end = 0, 1
    while begin < len(histogram):
        last = min(end, len(histogram)) - 1
        yield (str(begin) if last == begin else f"{begin}-{last}"), sum(histogram[begin:end])
        begin, end = end, max(end + 1, 2 * end - 1)
