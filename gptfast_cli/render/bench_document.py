"""A benchmark's record as JSON values and as files for other programs: JSON, JSON lines, CSV, a table in Markdown."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final, TextIO

from gptfast_cli.core.measure.record import Bench, BenchRow
from gptfast_cli.core.measure.scaling import scaling
from gptfast_cli.render.bench_table import cells, headings, measurement_line
from gptfast_cli.render.json import write_document
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.markdown import code, markdown_lines
from gptfast_cli.render.table import Table

_ABOUT = ("gptfast", "commit", "torch", "device", "cpu", "gpu", "threads", "dtype", "date")
"""What a line of CSV says of its environment."""


def write_json(bench: Bench, command: str, stream: TextIO) -> None:
    """Write the whole record as one document."""
    write_document("gptfast.bench/1", document(bench, command), stream)


def write_json_lines(bench: Bench, command: str, stream: TextIO) -> None:
    """Write each row as a line that stands alone."""
    for row in _rows(bench):
        write_document("gptfast.bench.row/1", {**row, **_about(bench, command)}, stream)


def write_csv(bench: Bench, command: str, stream: TextIO) -> None:
    """Write a line for each row; what was not measured is empty."""
    about = asdict(bench.environment)
    lines = [
        {**_flat(row), "command": command, "seed": bench.seed, **{name: about[name] for name in _ABOUT}}
        for row in _rows(bench)
    ]
    writer = csv.DictWriter(stream, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def write_markdown(bench: Bench, command: str, stream: TextIO) -> None:
    """Write a table as GitHub shows it, and a line about where it was measured and by what command."""
    names = ("model", "scheme", "KV", *headings(bench))
    rows = [
        (row.model, row.scheme, row.kv_dtype, *cells(row, bench), *((row.error,) if row.error else ()))
        for row in bench.rows
    ]
    for line in markdown_lines(Table(names, tuple(rows), "<<<<" + ">" * (len(names) - 4))):
        stream.write(line + "\n")
    about = f"{machine_line(bench.environment)}; {measurement_line(bench)}"
    stream.write(f"\n{code(command)}: {about}\n")


WRITERS: Final[dict[str, Callable[[Bench, str, TextIO], None]]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_json_lines,
    "md": write_markdown,
}
"""By the name that `--output` takes."""


def document(bench: Bench, command: str) -> dict[str, Any]:
    """The whole record as JSON values; `command` is what made it."""
    return {**_about(bench, command), "rows": _rows(bench), "scaling": [asdict(gain) for gain in scaling(bench.rows)]}


def _about(bench: Bench, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "environment": asdict(bench.environment),
        "model": bench.model,
        "scheme": bench.scheme,
        "head_scheme": bench.head_scheme,
        "kv_dtype": bench.kv_dtype,
        "n_params": bench.n_params,
        "bytes": bench.n_bytes,
        "seed": bench.seed,
        "load_s": bench.load_s,
        "compile": bench.compile_s,
        "bandwidth": asdict(bench.bandwidth) if bench.bandwidth else None,
        "reps": bench.n_rounds,
        "interrupted": bench.is_interrupted,
    }


def _rows(bench: Bench) -> list[dict[str, Any]]:
    return [asdict(row) | {"tok_s_per_sequence": _per_sequence(row)} for row in bench.rows]


def _per_sequence(row: BenchRow) -> dict[str, float | None] | None:
    if row.tok_s is None:
        return None
    return {name: None if value is None else value / row.batch_size for name, value in asdict(row.tok_s).items()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return dict(_flat_items(row))


def _flat_items(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        match name:
            case "tok_s" | "tok_s_per_sequence":
                spread = value or {}
                yield from ((f"{name}_{which}", spread.get(which)) for which in ("mean", "sd", "median"))
            case "ranks":
                shares = [rank["collective_share"] for rank in value]
                yield "collective_share", max((share for share in shares if share is not None), default=None)
            case "repetitions":
                yield name, " ".join(map(repr, value))
            case _:
                yield name, value
