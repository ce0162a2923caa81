"""The numbers of a generation in one compact block: each stands for itself, none is mixed into another."""

from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from gptfast_cli.core.bench.throughput import Metrics
from gptfast_cli.core.jobs.generate import GenerateResult
from gptfast_cli.render.numbers import (
    duration,
    gigabytes_per_second,
    share,
    size,
    tokens_per_second,
)
from gptfast_cli.render.speculation import speculation_rows
from gptfast_cli.render.tables import write_block


def write_numbers(generation: GenerateResult, stream: TextIO) -> None:
    """Write the block, within 80 columns; a number that was not measured is left out."""
    write_block(_rows(generation), stream)


def _rows(generation: GenerateResult) -> Iterator[tuple[str, ...]]:
    """Label and cells of each line."""
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
        waited = "" if each.collective_share is None else f"collectives {share(each.collective_share)} of the time"
        rate = "" if each.decode_gbps is None else gigabytes_per_second(each.decode_gbps)
        yield f"rank {each.rank}", rate, waited, f"peak memory {size(each.peak_memory_bytes)}"
    yield "tokens", _token_counts(generation), _endings(generation), f"seed {generation.seed}"


def _token_times(metrics: Metrics) -> str:
    if metrics.tpot_p50_s is None or metrics.tpot_p95_s is None:
        return ""
    return f"TPOT p50 {duration(metrics.tpot_p50_s)}, p95 {duration(metrics.tpot_p95_s)}"


def _bandwidth(metrics: Metrics) -> str:
    if metrics.decode_gbps is None:
        return ""
    mbu = "" if metrics.mbu is None else f" ({metrics.mbu:.0%} MBU)"
    return gigabytes_per_second(metrics.decode_gbps) + mbu


def _labelled(label: str, seconds: float | None) -> str:
    return "" if seconds is None else f"{label} {duration(seconds)}"


def _token_counts(generation: GenerateResult) -> str:
    n_prompt = sum(sample.prompt_tokens for sample in generation.samples)
    n_generated = sum(len(sample.token_ids) for sample in generation.samples)
    return f"{n_prompt:,} + {n_generated:,}"


def _endings(generation: GenerateResult) -> str:
    """Why the samples ended: `ended by eos`, or `ended by length (3), eos (1)`."""
    reasons = Counter(sample.finish_reason for sample in generation.samples)
    if len(generation.samples) == 1:
        return f"ended by {generation.samples[0].finish_reason}"
    return "ended by " + ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
