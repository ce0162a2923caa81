"""`gptfast convert`: a model from elsewhere becomes a checkpoint that describes itself."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    DebugOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    complete_cached,
    complete_folder,
    complete_model,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.progress import progress_view, show


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_cached,
            show_default=False,
            help="A folder, a file, or org/name in the Hugging Face cache.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_folder,
            show_default="the store",
            help="Where to write the checkpoint.",
        ),
    ] = None,
    dtype: DtypeOption = None,
    tokenizer_from: Annotated[
        str | None,
        typer.Option(metavar="MODEL", autocompletion=complete_model, help="Take the tokenizer of another model."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare all of it with its SHA-256, and logits with transformers if installed."),
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open pickled files: .bin and .pth of makers whom you trust.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there already.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a model of Hugging Face, Meta, gpt-fast or llama2.c into a checkpoint, and make it the current one.

    The folder that it was written to goes to stdout.
    """
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.jobs.convert import ConvertRequest, run

        request = ConvertRequest(
            source=source,
            settings=load_settings(),
            out=out,
            dtype=dtype,
            tokenizer_from=tokenizer_from,
            verify=verify,
            allow_pickle=allow_pickle,
            force=force,
        )
        converted = show(run(request), show_progress)
    if json:
        fields = {
            "path": converted.path,
            "name": converted.name,
            "bytes": converted.n_bytes,
            "was_there": converted.was_there,
        }
        write_document("gptfast.convert/1", fields, sys.stdout)
        return
    sys.stdout.write(f"{converted.path}\n")
    if not quiet:
        n_params = count(converted.n_params)
        is_current = "; now the current model" if converted.is_current else ""
        sys.stderr.write(f"{converted.name}: {n_params} parameters, {size(converted.n_bytes)}{is_current}\n")
