"""`gptfast quantize`: writes a model anew with fewer bits a weight, and measures what that costs."""

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from gptfast_cli.commands.quantize_options import (
    BlocksizeOption,
    CalibrationLimitOption,
    CalibrationOption,
    CalibrationSeqLengthOption,
    CalibrationTasksOption,
    EmbeddingsOption,
    FidelityTextOption,
    GroupSizeOption,
    HeadOption,
    LayersOption,
    ModeOption,
    OutOption,
    PercdampOption,
    RoundingOption,
    TargetKldOption,
    TargetSizeOption,
)
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.quantize.mode import read_mode
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
    model_given,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import progress_view, show


def quantize(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    mode: ModeOption = "int8",
    groupsize: GroupSizeOption = None,
    head: HeadOption = None,
    embeddings: EmbeddingsOption = None,
    layers: LayersOption = None,
    target_size: TargetSizeOption = None,
    target_kld: TargetKldOption = None,
    rounding: RoundingOption = None,
    calibration: CalibrationOption = None,
    calibration_tasks: CalibrationTasksOption = None,
    calibration_limit: CalibrationLimitOption = None,
    calibration_seq_length: CalibrationSeqLengthOption = None,
    percdamp: PercdampOption = None,
    blocksize: BlocksizeOption = None,
    out: OutOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there already.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the sizes before and after, and write nothing.")
    ] = False,
    fidelity_text: FidelityTextOption = None,
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
    _check_choice(context, {"--layers": layers, "--target-size": target_size, "--target-kld": target_kld})
    scheme, rounding = read_mode(mode, rounding)
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.jobs.allocating import Goal
        from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
        from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
        from gptfast_cli.core.quantize.allocation import AllocationOptions

        goal = None
        if target_size is not None or target_kld is not None:
            goal = Goal(None if target_size is None else int(target_size * 1e9), target_kld)
        request = QuantizeRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            storage=AllocationOptions(scheme, groupsize, head, embeddings, layers),
            rounding=rounding,
            goal=goal,
            calibration=CalibrationOptions(
                text=calibration,
                tasks=calibration_tasks,
                limit=calibration_limit,
                seq_length=calibration_seq_length,
                damping=percdamp,
                block_size=blocksize,
            ),
            out=out,
            force=force,
            dry_run=dry_run,
            fidelity=not no_fidelity,
            fidelity_text=fidelity_text,
            runtime=RuntimeConfig(device=device, dtype=dtype, threads=threads),
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


def _check_choice(context: typer.Context, options: Mapping[str, object]) -> None:
    """Raise UsageError where what layers get is said in two ways."""
    given = [flag for flag, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other.", "Leave out one of them.")
    source = context.get_parameter_source("mode")
    if given and given[0] != "--layers" and source is not None and source.name == "COMMANDLINE":
        raise UsageError(
            f"--mode and {given[0]} exclude each other: schemes are chosen.",
            "Leave out --mode; how integers are chosen says --rounding.",
        )
