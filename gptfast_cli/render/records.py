"""The records of a file of prompts, a line each as they come, and in the end what became of the file."""

import json
from collections.abc import Iterator
from typing import TextIO

from gptfast_cli.core.bench.throughput import Metrics
from gptfast_cli.core.events import Event, Record
from gptfast_cli.core.jobs.generate_batch import BatchResult
from gptfast_cli.render.numbers import duration, size, tokens_per_second
from gptfast_cli.render.progress import View
from gptfast_cli.render.speculation import speculation_rows
from gptfast_cli.render.tables import write_block


def records_view(stream: TextIO) -> View:
    """Writes each record as a line of ASCII, so that any reader, locale and terminal can take it."""

    def write(event: Event) -> None:
        if isinstance(event, Record):
            stream.write(json.dumps(event.fields, allow_nan=False) + "\n")
            stream.flush()

    return write


def without_records(view: View) -> View:
    """A view that is not told of records, because they go to a file."""

    def pass_on(event: Event) -> None:
        if not isinstance(event, Record):
            view(event)

    return pass_on


def write_batch(batch: BatchResult, stream: TextIO, *, can_go_on: bool) -> None:
    """Write what became of the rows and what they cost, within 80 columns."""
    write_block(_lines(batch), stream)
    if batch.is_interrupted:
        goes_on = "; the same command goes on from there" if can_go_on else ""
        stream.write(f"Interrupted: {batch.n_done:,} of {batch.n_rows:,} rows are done{goes_on}.\n")
        stream.flush()


def _lines(batch: BatchResult) -> Iterator[tuple[str, ...]]:
    bad = f"{batch.n_bad:,} bad" if batch.n_bad else ""
    found = f"{batch.n_found:,} from an earlier run" if batch.n_found else ""
    yield "rows", f"{batch.n_done:,} of {batch.n_rows:,}", bad, found
    if batch.metrics is not None:
        yield from _metrics_lines(batch.metrics)
        if batch.speculation is not None:
            yield from speculation_rows(batch.speculation)
    if batch.n_tokens:
        tokens = f"{batch.n_prompt_tokens:,} + {batch.n_tokens:,}"
        yield "tokens", tokens, f"{duration(batch.seconds)} in all", f"seed {batch.seed}"


def _metrics_lines(metrics: Metrics) -> Iterator[tuple[str, ...]]:
    if metrics.aggregate_tok_s is not None:
        yield "decode", tokens_per_second(metrics.aggregate_tok_s), "all rows together"
    if metrics.prefill_tok_s is not None:
        yield "prefill", tokens_per_second(metrics.prefill_tok_s)
    compiled = "" if metrics.compile_s is None else f"compile {duration(metrics.compile_s)}"
    yield "load", duration(metrics.load_s), compiled, f"peak memory {size(metrics.peak_memory_bytes)}"
