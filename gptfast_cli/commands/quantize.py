"""`gptfast quantize`: writes a model anew with fewer bits a weight, and measures the loss of quality."""

import sys
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.quantize import modes, quantizer_names, read_mode
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import Number
from gptfast_cli.options import (
    DeviceOptions,
    ModelArgument,
    ModelOption,
    NoUseOption,
    OutOption,
    OutputOptions,
    OverwriteOption,
    complete_file,
    complete_scheme,
    group_size_option,
    integer_option,
    is_given,
    model_given,
    name_option,
    number_option,
    path_option,
    scheme_option,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command

_POSITIVE = Number(is_closed=False)


def _complete_mode() -> list[str]:
    return modes(complete_scheme())


def _complete_rounding() -> list[str]:
    return list(quantizer_names())


def _complete_calibration(incomplete: str) -> list[str | tuple[str, str]]:
    return ["bundled", *complete_file(incomplete)]


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """Schemes of single layers, or a target that chooses them."""

    panel: ClassVar = "Schemes layer by layer"
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEMES", show_default="--mode for all", help="Schemes of single layers: 0-3=int8,*=int4."
        ),
    ] = None
    target_size: Annotated[
        float | None,
        number_option(
            _POSITIVE, "GB", "Choose schemes with the least loss for which the weights take at most this many GB."
        ),
    ] = None
    target_kld: Annotated[
        float | None,
        number_option(
            _POSITIVE,
            "NATS",
            "Choose the smallest schemes for which the mean KL divergence is at most this many nats.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """Calibration text and GPTQ; the fields are those of CalibrationOptions."""

    panel: ClassVar = "Calibration, for gptq and targets"
    calibration: Annotated[
        str | None,
        name_option("FILE", _complete_calibration, "Calibration text.", usual="bundled"),
    ] = None
    calibration_tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Calibrate on tasks of lm_eval, such as wikitext.")
    ] = None
    calibration_limit: Annotated[
        int | None, integer_option(1, "Maximum number of calibration sequences.", usual="12 tokens a column")
    ] = None
    calibration_seq_length: Annotated[
        int | None, integer_option(2, "Tokens of a calibration sequence; longer texts are split.", usual="512")
    ] = None
    percdamp: Annotated[
        float | None,
        number_option(_POSITIVE, "SHARE", "Damping of the Hessian, relative to its mean diagonal.", usual="0.01"),
    ] = None
    blocksize: Annotated[int | None, integer_option(1, "Columns of a GPTQ block.", usual="128")] = None


@command(
    "quantize",
    "gptfast quantize tiny --mode int8",
    "gptfast quantize tiny --mode int4 --groupsize 32 --rounding search",
    "gptfast quantize tiny --mode int4-gptq --dry-run",
)
def quantize(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    mode: Annotated[
        str,
        name_option(
            "SCHEME", _complete_mode, "Scheme of the layers: int8 or int4; int4-gptq is int4 with --rounding gptq."
        ),
    ] = "int8",
    groupsize: Annotated[int | None, group_size_option()] = None,
    head: Annotated[str | None, scheme_option("output head")] = None,
    embeddings: Annotated[str | None, scheme_option("embeddings")] = None,
    rounding: Annotated[
        str | None,
        name_option("NAME", _complete_rounding, "Quantizer: nearest, search or gptq.", usual="nearest"),
    ] = None,
    out: OutOption = None,
    no_use: NoUseOption = False,
    force: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sizes before and after; write nothing.")
    ] = False,
    fidelity_text: Annotated[
        Path | None, path_option("FILE", "Text on which the loss of quality is measured.", usual="the bundled one")
    ] = None,
    no_fidelity: Annotated[bool, typer.Option("--no-fidelity", help="Do not measure the loss of quality.")] = False,
    by_layer: LayerOptions,
    learning: LearningOptions,
    hardware: DeviceOptions,
    printing: OutputOptions,
) -> None:
    """Quantize a model to 8 or 4 bits a weight, measure the loss of quality, and make it the current model.

    Prints the folder of the new checkpoint. An interrupted run resumes when the command is repeated.
    """
    if no_fidelity and fidelity_text is not None:
        raise UsageError("--no-fidelity and --fidelity-text exclude each other.", "Leave out one of them.")
    target_size, target_kld = by_layer.target_size, by_layer.target_kld
    _check_choice(context, {"--layers": by_layer.layers, "--target-size": target_size, "--target-kld": target_kld})
    scheme, rounding = read_mode(mode, rounding)
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
        from gptfast_cli.core.jobs.mixed_precision import Goal
        from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
        from gptfast_cli.core.quantize.allocation import AllocationOptions

        goal = None
        if target_size is not None or target_kld is not None:
            goal = Goal(None if target_size is None else int(target_size * 1e9), target_kld)
        request = QuantizeRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            storage=AllocationOptions(scheme, groupsize, head, embeddings, by_layer.layers),
            rounding=rounding,
            goal=goal,
            calibration=CalibrationOptions(*astuple(learning)),
            out=out,
            use=not no_use,
            force=force,
            dry_run=dry_run,
            fidelity=not no_fidelity,
            fidelity_text=fidelity_text,
            runtime=RuntimeConfig(*astuple(hardware)),
        )
        quantized = show(run(request), show_progress)
    from gptfast_cli.render.checkpoints import KEYS, write_quantized, write_sizes

    if printing.json:
        write_document("gptfast.quantize/1", quantized, sys.stdout, KEYS)
    elif dry_run:
        write_sizes(quantized, sys.stdout)
    else:
        sys.stdout.write(f"{quantized.path}\n")
        if not printing.quiet:
            write_quantized(quantized, sys.stderr)


def _check_choice(context: typer.Context, options: Mapping[str, object]) -> None:
    """Raise UsageError if two options choose the schemes of the layers."""
    given = [flag for flag, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other.", "Leave out one of them.")
    if given and given[0] != "--layers" and is_given(context, "mode"):
        raise UsageError(
            f"--mode and {given[0]} exclude each other: {given[0]} chooses the schemes.",
            "Leave out --mode; --rounding sets the quantizer.",
        )
