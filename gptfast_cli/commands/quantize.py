"""`gptfast quantize`: writes a model anew with fewer bits a weight, and measures what that costs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    ThreadsOption,
    complete_file,
    complete_folder,
    complete_scheme,
    model_given,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.show import progress_view, show


def _complete_group_size() -> list[str]:
    return ["32", "64", "128", "256"]


def _complete_rounding() -> list[str]:
    return list(plug_names("gptfast_cli.core.quant.rounding"))


def quantize(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    mode: Annotated[
        str, typer.Option(metavar="SCHEME", autocompletion=complete_scheme, help="Scheme of the layers: int8 or int4.")
    ] = "int8",
    groupsize: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            autocompletion=_complete_group_size,
            show_default="32, where the scheme has groups",
            help="Weights that share a scale: 32, 64, 128 or 256.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", autocompletion=complete_scheme, show_default="int8", help="Scheme of the output head."
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", autocompletion=complete_scheme, show_default="int8", help="Scheme of the embeddings."
        ),
    ] = None,
    rounding: Annotated[
        str, typer.Option(metavar="NAME", autocompletion=_complete_rounding, help="How integers are chosen.")
    ] = "nearest",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_folder,
            show_default="the store",
            help="Where to write the checkpoint.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there already.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the sizes before and after, and write nothing.")
    ] = False,
    fidelity_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            autocompletion=complete_file,
            show_default="the bundled one",
            help="Measure what was lost on this text.",
        ),
    ] = None,
    no_fidelity: Annotated[bool, typer.Option("--no-fidelity", help="Do not measure what was lost.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Store a model in 8 or 4 bits a weight, measure what that costs, and make it the current one.

    The folder that it was written to goes to stdout. A run that was stopped goes on when it is given again.
    """
    if no_fidelity and fidelity_text is not None:
        raise UsageError("--no-fidelity and --fidelity-text exclude each other.", "Leave out one of them.")
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.decode.building import Placing
        from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
        from gptfast_cli.core.quant.allocation import AllocationOptions

        request = QuantizeRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            storage=AllocationOptions(mode, groupsize, head=head, embeddings=embeddings),
            rounding=rounding,
            out=out,
            force=force,
            dry_run=dry_run,
            fidelity=not no_fidelity,
            fidelity_text=fidelity_text,
            placing=Placing(device=device, dtype=dtype, threads=threads),
        )
        quantized = show(run(request), show_progress)
    from gptfast_cli.render.quantization import document, write_quantized, write_sizes

    if json:
        write_document("gptfast.quantize/1", document(quantized), sys.stdout)
    elif dry_run:
        write_sizes(quantized, sys.stdout)
    else:
        sys.stdout.write(f"{quantized.path}\n")
        if not quiet:
            write_quantized(quantized, sys.stderr)
