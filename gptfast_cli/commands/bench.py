"""`gptfast bench`: speed of a model, or of a shape with random weights; with --plan, a prediction."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from gptfast_cli.commands.bench_options import (
    DEPTHS,
    GEN_LENS,
    ONE,
    PROMPT_LENS,
    ArchOption,
    CompareOption,
    DepthOption,
    DeviceBandwidthOption,
    DeviceMemoryOption,
    EfficiencyOption,
    EmbeddingsOption,
    FailAboveOption,
    GenLenOption,
    GroupSizeOption,
    HeadOption,
    LinkBandwidthOption,
    LinkLatencyOption,
    ModeOption,
    OutputOption,
    PlanOption,
    PlotOption,
    PromptLenOption,
    RepsOption,
    SeedOption,
    TpOption,
)
from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.models.process_group import ALONE
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import IntegerList
from gptfast_cli.options import (
    BatchSizesOption,
    CompileOptions,
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    ModelArgument,
    ModelOption,
    OutputOptions,
    check_output_file,
    is_given,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.bench.record import Bench
    from gptfast_cli.core.jobs.plan import BenchPlan

_FORMATS = ("csv", "json", "jsonl", "md")
_OF_A_SHAPE = ("mode", "groupsize", "head", "embeddings")
_OF_A_MODEL = ("model_argument", "model")
_OF_A_PLAN = ("device_bandwidth", "device_memory", "link_bandwidth", "link_latency", "efficiency")
"""Options that require --plan."""

_OF_A_MEASUREMENT = (
    "model_argument", "model", "arch", "reps", "seed", "compile", "compile_prefill", "backend", "activations", "output",
    "compare", "fail_above", "plot",
)  # fmt: skip
_OF_THIS_MACHINE = ("device", "threads")
_OF_ANOTHER_MACHINE = ("device_bandwidth", "device_memory")


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
    batch_size: BatchSizesOption = ONE,
    prompt_len: PromptLenOption = PROMPT_LENS,
    gen_len: GenLenOption = GEN_LENS,
    depth: DepthOption = DEPTHS,
    reps: RepsOption = 5,
    seed: SeedOption = 0,
    arch: ArchOption = None,
    mode: ModeOption = "plain",
    groupsize: GroupSizeOption = None,
    head: HeadOption = None,
    embeddings: EmbeddingsOption = None,
    plan: PlanOption = None,
    tp: TpOption = None,
    device_bandwidth: DeviceBandwidthOption = None,
    device_memory: DeviceMemoryOption = None,
    link_bandwidth: LinkBandwidthOption = None,
    link_latency: LinkLatencyOption = None,
    efficiency: EfficiencyOption = None,
    compiled: CompileOptions,
    hardware: DeviceOptions,
    kv_dtype: KvDtypeOption = "auto",
    engine: EngineOptions,
    output: OutputOption = None,
    compare: CompareOption = None,
    fail_above: FailAboveOption = None,
    plot: PlotOption = None,
    printing: OutputOptions,
) -> None:
    """Measure the speed of prefill (pp) and decoding (tg), with the memory bandwidth that is reached.

    With --plan, predict whether a model fits and how fast it is. Results go to stdout, everything else to stderr.
    Ctrl-C keeps the measurements so far.
    """
    written = _format(output, json=printing.json)
    flags = _flags(context)
    if plan is None:
        _refuse_unexpected(flags, arch)
    else:
        _check_plan(flags)
    if fail_above is not None and compare is None:
        raise UsageError("--fail-above requires --compare.", "Add --compare FILE, an older file of bench --json.")
    check_output_file("--plot", plot, (".svg",))
    prompt_lens, gen_lens = _lengths(prompt_len), _lengths(gen_len)
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

        allocation = AllocationOptions(mode, groupsize, head, embeddings)
        cases = CaseOptions(prompt_lens, gen_lens, depth.numbers, batch_size.numbers)
        if plan is not None:
            asked = PlanRequest(
                settings=load_settings(),
                model=plan,
                allocation=allocation if flags.keys() & set(_OF_A_SHAPE) or mode != "plain" else None,
                tps=tps or (1,),
                cases=cases,
                runtime=RuntimeConfig(**asdict(hardware), kv_dtype=kv_dtype),
                hardware=HardwareOptions(device_bandwidth, device_memory, link_bandwidth, link_latency),
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
                n_rounds=reps,
                seed=seed,
                # the file is on the machine of rank 0, whose record counts
                comparison=None if compare is None or group.rank else ComparisonOptions(compare, fail_above),
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
