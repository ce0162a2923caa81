"""`gptfast bench`: speed of a model, or of a shape with random weights; with --plan, a prediction."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.models.process_group import ALONE
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import IntegerList, Number
from gptfast_cli.options import (
    CASES,
    MACHINE,
    OUTPUT,
    USUAL_TP,
    BatchSizesOption,
    CompileOptions,
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    ModelArgument,
    ModelOption,
    OutputOptions,
    check_output_file,
    choices,
    complete_file,
    complete_model,
    complete_scheme,
    group_size_option,
    integer_option,
    integers_option,
    is_given,
    model_given,
    name_option,
    number_option,
    path_option,
    scheme_option,
    seed_option,
)
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.bench.record import Bench
    from gptfast_cli.core.jobs.plan import BenchPlan

_FORMATS: Final = ("csv", "json", "jsonl", "md")
_POSITIVE: Final = Number(is_closed=False)
_BATCH_SIZES: Final = IntegerList("1", (1,))
_PROMPT_LENS: Final = IntegerList("512", (512,))
_GEN_LENS: Final = IntegerList("128", (128,))
_DEPTHS: Final = IntegerList("0", (0,))


def _complete_shape(incomplete: str) -> list[str | tuple[str, str]]:
    from gptfast_cli.core.engine.shapes import KNOWN_SHAPES

    return [*KNOWN_SHAPES, *complete_file(incomplete)]


def _complete_planned(incomplete: str) -> list[str | tuple[str, str]]:
    return [*_complete_shape(incomplete), *complete_model(incomplete)]


@dataclass(frozen=True, slots=True)
class MeasurementOptions:
    """Batch sizes, lengths and repetitions; a plan has no repetitions and no seed."""

    panel: ClassVar = CASES
    batch_size: BatchSizesOption = _BATCH_SIZES
    prompt_len: Annotated[IntegerList, integers_option(0, "N,...", "Prompt lengths; 0: no prefill test.")] = (
        _PROMPT_LENS
    )
    gen_len: Annotated[IntegerList, integers_option(0, "N,...", "Numbers of generated tokens; 0: no decode test.")] = (
        _GEN_LENS
    )
    depth: Annotated[IntegerList, integers_option(0, "N,...", "Tokens already in the KV cache.")] = _DEPTHS
    reps: Annotated[int, integer_option(1, "Number of timed repetitions.")] = 5
    seed: Annotated[int, seed_option("Random seed of prompts and weights.")] = 0


@dataclass(frozen=True, slots=True)
class SchemeOptions:
    """Schemes of a shape's weights; the fields are those of AllocationOptions."""

    panel: ClassVar = "Shape with random weights"
    mode: Annotated[str, name_option("SCHEME", complete_scheme, "Scheme of the layers.")] = "plain"
    groupsize: Annotated[int | None, group_size_option()] = None
    head: Annotated[str | None, scheme_option("output head")] = None
    embeddings: Annotated[str | None, scheme_option("embeddings")] = None


ArchOption = Annotated[
    str | None,
    name_option(
        "SHAPE",
        _complete_shape,
        "SHAPE: llama-2-7b, a config.json, or layers=4,dim=768,heads=12,ffn=3072,vocab=32000.",
        panel=SchemeOptions.panel,
    ),
]


@dataclass(frozen=True, slots=True)
class PlannedHardwareOptions:
    """The hardware of a plan; the fields are those of HardwareOptions."""

    panel: ClassVar = "Plan: predicted size and speed, without loading"
    device_bandwidth: Annotated[
        float | None,
        number_option(_POSITIVE, "GB/S", "Memory bandwidth of each device, GB/s.", usual="this machine's"),
    ] = None
    device_memory: Annotated[
        float | None,
        number_option(_POSITIVE, "GB", "Memory of each device, GB.", usual="free memory of this machine"),
    ] = None
    link_bandwidth: Annotated[
        float | None,
        number_option(_POSITIVE, "GB/S", "Link bandwidth of each device to all others together, GB/s."),
    ] = None
    link_latency: Annotated[
        float | None, number_option(Number(), "US", "Latency of a message, in microseconds.", usual="10")
    ] = None


PlanOption = Annotated[
    str | None,
    name_option(
        "MODEL|SHAPE",
        _complete_planned,
        "Predict whether a model fits and how fast it is, on this machine or on the hardware below.",
        panel=PlannedHardwareOptions.panel,
    ),
]
EfficiencyOption = Annotated[
    float | None,
    typer.Option(
        parser=Number(0, 1, is_closed=False),
        metavar="SHARE",
        show_default="by scheme and layer",
        rich_help_panel=PlannedHardwareOptions.panel,
        help="Fraction of the memory bandwidth that decoding reaches (MBU), 0 to 1.",
    ),
]
TpOption = Annotated[
    IntegerList | None,
    integers_option(
        1,
        "1,2,4",
        "Tensor parallelism: processes that share the model, or devices of a plan.",
        usual=USUAL_TP,
        panel=MACHINE,
    ),
]


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """The format of the results, their chart, and an older record to compare with."""

    panel: ClassVar = OUTPUT
    output: Annotated[
        str | None,
        name_option("FORMAT", choices(*_FORMATS), "Format: md, csv, json or jsonl.", usual="a table"),
    ] = None
    compare: Annotated[
        Path | None,
        path_option(
            "FILE",
            "Older --json or --output jsonl file: show the ratio of each row's speed, with a 95 % interval.",
        ),
    ] = None
    fail_above: Annotated[
        float | None,
        number_option(
            Number(0, 100),
            "PERCENT",
            "With --compare: exit with 1 if a row is slower by more than this.",
            usual="never",
        ),
    ] = None
    plot: Annotated[Path | None, path_option("FILE", "Write a bar chart of the rows to this .svg file.")] = None


def _names(*groups: type) -> tuple[str, ...]:
    return tuple(field.name for group in groups for field in fields(group))


_OF_A_SHAPE: Final = _names(SchemeOptions)
_OF_A_MODEL: Final = ("model_argument", "model")
_OF_A_PLAN: Final = (*_names(PlannedHardwareOptions), "efficiency")
"""Options that require --plan."""

_OF_A_MEASUREMENT: Final = (
    *_OF_A_MODEL, "arch", "reps", "seed", *_names(CompileOptions, EngineOptions, ResultOptions)
)  # fmt: skip
_OF_THIS_MACHINE: Final = ("device", "threads")
_OF_ANOTHER_MACHINE: Final = ("device_bandwidth", "device_memory")


@command(
    "bench",
    "gptfast bench tiny --batch-size 1,2,4,8",
    "gptfast bench --plan llama-2-7b --device-bandwidth 1000 --device-memory 24",
    "gptfast bench tiny --compare older.json --fail-above 5 --plot speed.svg",
)
def bench(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    measuring: MeasurementOptions,
    arch: ArchOption = None,
    schemes: SchemeOptions,
    plan: PlanOption = None,
    planned_hardware: PlannedHardwareOptions,
    efficiency: EfficiencyOption = None,
    tp: TpOption = None,
    hardware: DeviceOptions,
    kv_dtype: KvDtypeOption = "auto",
    engine: EngineOptions,
    compiled: CompileOptions,
    results: ResultOptions,
    printing: OutputOptions,
) -> None:
    """Measure the speed of prefill (pp) and decoding (tg), with the memory bandwidth that is reached.

    With --plan, predict whether a model fits and how fast it is. Results go to stdout, everything else to stderr.
    Ctrl-C keeps the measurements so far.
    """
    written = _format(results.output, json=printing.json)
    flags = _flags(context)
    if plan is None:
        _refuse_unexpected(flags, arch)
    else:
        _check_plan(flags)
    compare, plot = results.compare, results.plot
    if results.fail_above is not None and compare is None:
        raise UsageError("--fail-above requires --compare.", "Add --compare FILE, an older file of bench --json.")
    check_output_file("--plot", plot, (".svg",))
    tps = () if tp is None else tp.numbers
    group = ALONE if plan is not None else context.with_resource(ranks(max(tps, default=None)))
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.bench.comparison import ComparisonOptions
        from gptfast_cli.core.bench.workload import CaseOptions
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.compiled import Compiling
        from gptfast_cli.core.jobs.bench import BenchRequest, run
        from gptfast_cli.core.jobs.plan import HardwareOptions, PlanRequest
        from gptfast_cli.core.jobs.plan import run as run_plan
        from gptfast_cli.core.quantize.allocation import AllocationOptions

        allocation = AllocationOptions(*astuple(schemes))
        cases = CaseOptions(
            _lengths(measuring.prompt_len),
            _lengths(measuring.gen_len),
            measuring.depth.numbers,
            measuring.batch_size.numbers,
        )
        if plan is not None:
            asked = PlanRequest(
                settings=load_settings(),
                model=plan,
                allocation=allocation if flags.keys() & set(_OF_A_SHAPE) or schemes.mode != "plain" else None,
                tps=tps or (1,),
                cases=cases,
                runtime=RuntimeConfig(**asdict(hardware), kv_dtype=kv_dtype),
                hardware=HardwareOptions(*astuple(planned_hardware)),
                efficiency=efficiency,
            )
            planned = show(run_plan(asked), show_progress)
        else:
            request = BenchRequest(
                settings=load_settings(),
                model=model_given(context, model_argument, model),
                arch=arch,
                allocation=allocation,
                runtime=RuntimeConfig(
                    **asdict(hardware), **asdict(compiled.engine(engine)), kv_dtype=kv_dtype, group=group
                ),
                compiling=Compiling(compiled.compile, compiled.compile_prefill),
                cases=cases,
                tps=tps,
                n_rounds=measuring.reps,
                seed=measuring.seed,
                # the file is on the machine of rank 0, whose record counts
                comparison=None if compare is None or group.rank else ComparisonOptions(compare, results.fail_above),
            )
            measured = show(run(request), show_progress)
    if plan is not None:
        _write_plan(planned, json=printing.json)
        return
    write_bench(measured, written)
    if plot is not None and group.rank == 0:
        from gptfast_cli.core.files import write_whole
        from gptfast_cli.render.bench import chart

        write_whole(plot, chart(measured))
    if code := exit_code(measured):
        raise typer.Exit(code)
    if measured.comparison is not None and measured.comparison.failing:
        from gptfast_cli.render.bench import slower_than_allowed

        raise GptFastError(*slower_than_allowed(measured.comparison))


def write_bench(bench: "Bench", written: str | None) -> None:
    """Write it in a format of `--output`; None: a table."""
    if written is None:
        from gptfast_cli.render.bench import write_table

        write_table(bench, sys.stdout)
    else:
        from gptfast_cli.render.bench import WRITERS

        WRITERS[written](bench, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)


def _write_plan(planned: "BenchPlan", *, json: bool) -> None:
    from gptfast_cli.render.plan import write_json, write_table

    if json:
        write_json(planned, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)
    else:
        write_table(planned, sys.stdout)


def exit_code(bench: "Bench") -> ExitCode:
    """The exit code of a benchmark."""
    if bench.is_interrupted:
        return ExitCode.INTERRUPTED
    if bench.has_numbers:
        return ExitCode.OK
    return ExitCode.OUT_OF_MEMORY if bench.is_out_of_memory else ExitCode.FAILURE


def _format(output: str | None, *, json: bool) -> str | None:
    """The format of the output; None: a table."""
    if output is not None and output not in _FORMATS:
        raise UsageError(f"--output: there is no format {output!r}.", f"Formats: {', '.join(_FORMATS)}.")
    if json and output not in (None, "json"):
        raise UsageError(f"--json and --output {output} exclude each other.", "Leave out one of them.")
    return "json" if json else output


def _flags(context: typer.Context) -> dict[str | None, str]:
    """The options on the command line, by parameter name: `--prompt-len`, or MODEL for the argument."""
    given = [parameter for parameter in context.command.params if is_given(context, parameter.name or "")]
    return {parameter.name: parameter.opts[0] if parameter.opts[0].startswith("-") else "MODEL" for parameter in given}


def _refuse_unexpected(flags: Mapping[str | None, str], arch: str | None) -> None:
    """Raise UsageError for an option on the command line that has no effect."""
    for flag in (flags[name] for name in _OF_A_PLAN if name in flags):
        raise UsageError(f"{flag} requires --plan.", "Add --plan MODEL, or --plan SHAPE.")
    for name in _OF_A_SHAPE if arch is None else _OF_A_MODEL:
        if name not in flags:
            continue
        if arch is None:
            raise UsageError(
                f"{flags[name]} requires --arch: a checkpoint has its own schemes.",
                "Add --arch SHAPE, or make a checkpoint of other schemes: gptfast quantize",
            )
        raise UsageError(f"{flags[name]} and --arch exclude each other.", "Leave out one of them.")


def _check_plan(flags: Mapping[str | None, str]) -> None:
    """Raise UsageError for an option that has no effect with --plan; `flags` are those on the command line."""
    for name in _OF_A_MEASUREMENT:
        if name in flags:
            hint = "Leave out one of them; a plan is printed as a table, or with --json."
            raise UsageError(f"{flags[name]} and --plan exclude each other.", hint)
    described = next((flags[name] for name in _OF_ANOTHER_MACHINE if name in flags), None)
    for name in _OF_THIS_MACHINE:
        if described and name in flags:
            raise UsageError(
                f"{flags[name]} and {described} exclude each other: one is this machine, the other another machine.",
                "Leave out one of them.",
            )


def _lengths(listed: IntegerList) -> tuple[int, ...]:
    """The numbers without 0, which means none."""
    return tuple(number for number in listed.numbers if number)
