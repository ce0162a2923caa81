"""What quantising a model did to its size, and what it cost."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TextIO

from gptfast_cli.core.evals.divergence import Divergence
from gptfast_cli.core.jobs.quantize import Quantized
from gptfast_cli.core.quantize.sizes import PartSize
from gptfast_cli.render import allocation
from gptfast_cli.render.json import finite
from gptfast_cli.render.numbers import (
    count,
    duration,
    nats,
    share,
    size,
)
from gptfast_cli.render.tables import write_block, write_table


def document(quantized: Quantized) -> dict[str, object]:
    """The result as JSON fields; a number without bounds is null."""
    fidelity = quantized.fidelity and {
        **asdict(quantized.fidelity),
        "dtype": quantized.fidelity_dtype,
    }
    return {
        "path": quantized.path,
        "name": quantized.name,
        "scheme": quantized.scheme,
        "bytes": quantized.n_bytes,
        "bytes_before": quantized.n_bytes_before,
        "bits_per_weight": quantized.bits_per_weight,
        "parts": [asdict(part) for part in quantized.parts],
        "allocation": quantized.chosen and allocation.document(quantized.chosen),
        "is_written": quantized.is_written,
        "was_there": quantized.was_there,
        "fidelity": finite(fidelity),
        "seconds": quantized.seconds,
        "peak_memory_bytes": quantized.peak_memory_bytes,
    }


def write_sizes(quantized: Quantized, stream: TextIO) -> None:
    """Write the table of sizes before and after, part by part, below that of the layers where these were chosen."""
    if quantized.chosen is not None:
        allocation.write_choice(quantized.chosen, stream)
        stream.write("\n")
    whole = PartSize(quantized.name, "", quantized.n_params, quantized.n_bytes_before, quantized.n_bytes)
    rows = [
        (
            *(each.part, each.scheme, count(each.n_params), size(each.n_bytes_before), size(each.n_bytes)),
            f"{8 * each.n_bytes / each.n_params:.2f}",
        )
        for each in (*quantized.parts, whole)
    ]
    write_table([("PART", "SCHEME", "PARAMETERS", "BEFORE", "AFTER", "BITS A WEIGHT"), *rows], stream)


def write_quantized(quantized: Quantized, stream: TextIO) -> None:
    """Write the block of numbers, within 80 columns, and what the last of them means."""
    if quantized.chosen is not None:
        allocation.write_choice(quantized.chosen, stream)
    write_block(_lines(quantized), stream)
    if quantized.is_current:
        stream.write(f"{quantized.name} is now the current model.\n")


def _lines(quantized: Quantized) -> Iterator[tuple[str, ...]]:
    before, after = size(quantized.n_bytes_before), size(quantized.n_bytes)
    yield "size", after, f"{quantized.bits_per_weight:.2f} bits a weight", f"was {before}"
    if quantized.fidelity is not None:
        yield from _fidelity(quantized.fidelity, quantized.fidelity_dtype)
    yield "time", duration(quantized.seconds), f"peak memory {size(quantized.peak_memory_bytes)}"


def _fidelity(fidelity: Divergence, dtype: str) -> Iterator[tuple[str, ...]]:
    yield "KLD", nats(fidelity.kld_mean), f"p99 {nats(fidelity.kld_p99)}", f"{fidelity.tokens:,} tokens in {dtype}"
    yield "same top", share(fidelity.same_top1), f"perplexity x {fidelity.ppl_ratio:.4f}"
    yield "alpha", f"{fidelity.alpha:.4f}", "the share of tokens accepted as the original's draft"
