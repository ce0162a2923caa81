"""Results of `download`, `convert` and `quantize`: files, sizes, fidelity, and the scheme chosen for each layer."""

from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.jobs.convert import Converted
from gptfast_cli.core.jobs.download import Downloaded, DownloadedFile
from gptfast_cli.core.jobs.mixed_precision import ChosenAllocation, LayerChoice
from gptfast_cli.core.jobs.quantize import Fidelity, Quantized
from gptfast_cli.core.quantize.sizes import MemoryNeed, PartSize
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.render.json import Keys
from gptfast_cli.render.numbers import count, duration, nats, share, size
from gptfast_cli.render.terminal import printable, write_block, write_table

KEYS: Final[Keys] = {
    Converted: "path name bytes=n_bytes was_there is_current",
    Quantized: (
        "path name scheme bytes=n_bytes bytes_before=n_bytes_before bits_per_weight parts allocation=chosen "
        "is_written is_current was_there fidelity seconds peak_memory_bytes"
    ),
    Fidelity: "*divergence dtype",
    ChosenAllocation: "layers ends_kld predicted_kld measured_kld tokens=n_tokens",
    LayerChoice: "layer scheme kld=klds bytes=n_bytes",
    Downloaded: (
        "path name commit bytes=n_bytes missing_bytes received_bytes=n_received free_bytes files memory is_written "
        "is_current"
    ),
    DownloadedFile: "name bytes=n_bytes was_there begun_bytes=n_begun verified_by",
}


def write_plan(downloaded: Downloaded, stream: TextIO) -> None:
    """Write the files, the bytes to fetch, the free disk space, and the memory that running the model takes."""
    rows = [(file.name, size(file.n_bytes), _here(file)) for file in downloaded.files]
    write_table([("FILE", "SIZE", "HERE"), *rows], stream)
    begun = sum(file.n_begun for file in downloaded.files)
    to_fetch = size(downloaded.missing_bytes - begun)
    stream.write(f"\n{size(downloaded.n_bytes)} in all, {to_fetch} to fetch; {size(downloaded.free_bytes)} free\n")
    stream.write(f"to {printable(str(downloaded.path))}\n")
    if downloaded.memory is not None:
        stream.write(f"memory to run it: {'; '.join(_memory(downloaded.memory))}\n")


def write_downloaded(downloaded: Downloaded, stream: TextIO) -> None:
    """Write a line with the number of files and bytes, and one with the files that could not be verified."""
    parts = [f"{len(downloaded.files)} files, {size(downloaded.n_bytes)}"]
    unverified = [file.name for file in downloaded.files if not file.was_there and file.verified_by is None]
    if downloaded.n_received:
        parts.append(f"{size(downloaded.n_received)} received" + ("" if unverified else " and verified"))
    if downloaded.is_current:
        parts.append("now the current model")
    stream.write(printable(f"{downloaded.name}: {'; '.join(parts)}\n"))
    if unverified:
        stream.write(printable(f"NOT verified, as no hash is offered for them: {', '.join(unverified)}\n"))


def _here(file: DownloadedFile) -> str:
    if file.was_there:
        return "yes"
    return size(file.n_begun) if file.n_begun else "no"


def _memory(memory: MemoryNeed) -> Iterator[str]:
    yield ", ".join(f"{size(n_bytes)} in {form}" for form, n_bytes in memory.weight_bytes.items())
    later = f"; {size(memory.kv_bytes_per_later_token)} after {memory.window:,}" if memory.window else ""
    yield f"{size(memory.kv_bytes_per_token)} more for each token of context{later}"


def write_sizes(quantized: Quantized, stream: TextIO) -> None:
    """Write the sizes before and after by part, below the schemes of the layers where a budget chose them."""
    if quantized.chosen is not None:
        write_allocation(quantized.chosen, stream)
        stream.write("\n")
    total = PartSize(quantized.name, "", quantized.n_params, quantized.n_bytes_before, quantized.n_bytes)
    rows = [
        (
            *(each.part, each.scheme, count(each.n_params), size(each.n_bytes_before), size(each.n_bytes)),
            f"{8 * each.n_bytes / each.n_params:.2f}",
        )
        for each in (*quantized.parts, total)
    ]
    write_table([("PART", "SCHEME", "PARAMETERS", "BEFORE", "AFTER", "BITS A WEIGHT"), *rows], stream)


def write_quantized(quantized: Quantized, stream: TextIO) -> None:
    """Write the block of numbers, within 80 columns."""
    if quantized.chosen is not None:
        write_allocation(quantized.chosen, stream)
    write_block(_rows(quantized), stream)
    if quantized.is_current:
        stream.write(f"{quantized.name} is now the current model.\n")


def write_allocation(chosen: ChosenAllocation, stream: TextIO) -> None:
    """Write a line for each layer: its scheme, its size, and its KLD in each scheme; then the sums."""
    storages = [storage for storage in chosen.layers[0].klds if storage.scheme != PLAIN]
    rows = [
        (
            *(str(each.layer), each.scheme, size(each.n_bytes[each.storage])),
            *(nats(each.klds[storage]) for storage in storages),
        )
        for each in chosen.layers
    ]
    write_table([("LAYER", "GETS", "SIZE", *(f"KLD IN {str(storage).upper()}" for storage in storages)), *rows], stream)
    stream.write(
        f"KLD {nats(chosen.predicted_kld)} as a sum, of which embedding and head {nats(chosen.ends_kld)}; "
        f"{nats(chosen.measured_kld)} together, over {chosen.n_tokens:,} tokens\n"
    )


def _rows(quantized: Quantized) -> Iterator[tuple[str, ...]]:
    before, after = size(quantized.n_bytes_before), size(quantized.n_bytes)
    yield "size", after, f"{quantized.bits_per_weight:.2f} bits a weight", f"was {before}"
    if quantized.fidelity is not None:
        yield from _fidelity(quantized.fidelity)
    yield "time", duration(quantized.seconds), f"peak memory {size(quantized.peak_memory_bytes)}"


def _fidelity(fidelity: Fidelity) -> Iterator[tuple[str, ...]]:
    found = fidelity.divergence
    yield "KLD", nats(found.kld_mean), f"p99 {nats(found.kld_p99)}", f"{found.tokens:,} tokens in {fidelity.dtype}"
    yield "same top", share(found.same_top1), f"perplexity x {found.ppl_ratio:.4f}"
    yield "alpha", f"{found.alpha:.4f}", "the share of tokens accepted as the original's draft"
