"""Results of `download`: the files, or with --dry-run the plan of a transfer."""

from collections.abc import Iterator
from typing import Any, Final, TextIO

from gptfast_cli.core.jobs.download import Downloaded, DownloadedFile
from gptfast_cli.core.quantize.sizes import MemoryNeed
from gptfast_cli.render.json import Keys, to_document
from gptfast_cli.render.numbers import size
from gptfast_cli.render.tables import write_table
from gptfast_cli.render.terminal import printable

_KEYS: Final[Keys] = {
    Downloaded: (
        "path name commit bytes=n_bytes missing_bytes received_bytes=n_received free_bytes files memory is_written "
        "is_current"
    ),
    DownloadedFile: "name bytes=n_bytes was_there begun_bytes=n_begun verified_by",
}


def document(downloaded: Downloaded) -> dict[str, Any]:
    """The JSON fields."""
    return to_document(downloaded, _KEYS)


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
    yield f"{size(memory.kv_bytes_per_token)} more for each token of context"
