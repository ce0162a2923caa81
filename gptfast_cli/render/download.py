"""What a download brought, or with a dry run would bring."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TextIO

from gptfast_cli.core.jobs.download import Downloaded, DownloadedFile
from gptfast_cli.core.quantize.sizes import MemoryNeed
from gptfast_cli.render.numbers import size
from gptfast_cli.render.tables import write_table
from gptfast_cli.render.terminal import printable


def document(downloaded: Downloaded) -> dict[str, object]:
    """The result as JSON fields."""
    return {
        "path": downloaded.path,
        "name": downloaded.name,
        "commit": downloaded.commit,
        "bytes": downloaded.n_bytes,
        "missing_bytes": downloaded.missing_bytes,
        "received_bytes": downloaded.n_received,
        "free_bytes": downloaded.free_bytes,
        "files": [
            {
                "name": file.name,
                "bytes": file.n_bytes,
                "was_there": file.was_there,
                "begun_bytes": file.n_begun,
                "verified_by": file.verified_by,
            }
            for file in downloaded.files
        ],
        "memory": downloaded.memory and asdict(downloaded.memory),
        "is_written": downloaded.is_written,
        "is_current": downloaded.is_current,
    }


def write_plan(downloaded: Downloaded, stream: TextIO) -> None:
    """Write the files and what is here of them, then the sums, the free disk and the memory that running it takes."""
    rows = [(file.name, size(file.n_bytes), _here(file)) for file in downloaded.files]
    write_table([("FILE", "SIZE", "HERE"), *rows], stream)
    begun = sum(file.n_begun for file in downloaded.files)
    to_fetch = size(downloaded.missing_bytes - begun)
    stream.write(f"\n{size(downloaded.n_bytes)} in all, {to_fetch} to fetch; {size(downloaded.free_bytes)} free\n")
    stream.write(f"to {printable(str(downloaded.path))}\n")
    if downloaded.memory is not None:
        stream.write(f"memory to run it: {'; '.join(_memory(downloaded.memory))}\n")


def write_downloaded(downloaded: Downloaded, stream: TextIO) -> None:
    """Write in one line what came, and in another what could not be verified."""
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
