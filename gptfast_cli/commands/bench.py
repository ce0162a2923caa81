"""`gptfast bench`: how fast a model, or a shape without weights, feeds prompts and generates."""

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from gptfast_cli.commands.bench_options import (
    DEPTHS,
    GEN_LENS,
    ONE,
    PROMPT_LENS,
    ArchOption,
    BatchSizesOption,
    CompileOption,
    CompilePrefillOption,
    DepthOption,
    DeviceBandwidthOption,
    DeviceMemoryOption,
    EfficiencyOption,
    EmbeddingsOption,
    GenLenOption,
    GroupSizeOption,
    HeadOption,
    LinkBandwidthOption,
    LinkLatencyOption,
    ModeOption,
    OutputOption,
    PlanOption,
    PromptLenOption,
    RepsOption,
    SeedOption,
    TpOption,
)
from gptfast_cli.commands.bench_plan import (
    OF_A_PLAN,
    check_plan,
    make_plan,
    write_plan,
)
from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, UsageError
from gptfast_cli.core.models.process_group import ALONE
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import IntegerList
from gptfast_cli.options import (
    ActivationsOption,
    BackendOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KvDtypeOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    ThreadsOption,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show

if TYPE_CHECKING:
    from gptfast_cli.core.bench.record import Bench

_FORMATS = ("csv", "json", "jsonl", "md")
_OF_A_SHAPE = ("mode", "groupsize", "head", "embeddings")
_OF_A_MODEL = ("model_argument", "model")


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
    compile: CompileOption = False,  # noqa: A002  # the option's name, also in the settings file
    compile_prefill: CompilePrefillOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    kv_dtype: KvDtypeOption = "auto",
    threads: ThreadsOption = None,
    backend: BackendOption = None,
    activations: ActivationsOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how fast a model feeds prompts (pp) and generates (tg), beside the memory that it reads.

    With --plan it is computed instead whether it fits and how fast it should be. Results go to stdout, all else to
    stderr. Ctrl-C keeps what has been measured.
    """
    written = _format(output, json=json)
    flags = _flags(context)
    if plan is None:
        _refuse_strangers(flags, arch)
    else:
        check_plan(flags)
    prompt_lens, gen_lens = _lengths(prompt_len), _lengths(gen_len)
    tps = () if tp is None else tp.numbers
    group = ALONE if plan is not None else context.with_resource(ranks(max(tps, default=None)))
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.bench.workload import CaseOptions
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.compiled import Compiling
        from gptfast_cli.core.jobs.bench import BenchRequest, run
        from gptfast_cli.core.jobs.plan import HardwareOptions, PlanRequest
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
                runtime=RuntimeConfig(device, dtype, threads, kv_dtype=kv_dtype),
                hardware=HardwareOptions(device_bandwidth, device_memory, link_bandwidth, link_latency),
                efficiency=efficiency,
            )
            planned = make_plan(asked, show_progress)
        else:
            chosen = backend or ("reference" if compile or compile_prefill else None)  # it is PyTorch that compiles
            request = BenchRequest(
                settings=load_settings(),
                model=model_given(context, model_argument, model),
                arch=arch,
                allocation=allocation,
                runtime=RuntimeConfig(device, dtype, threads, chosen, activations, kv_dtype=kv_dtype, group=group),
                compiling=Compiling(decode=compile, prefill=compile_prefill),
                cases=cases,
                tps=tps,
                n_rounds=reps,
                seed=seed,
            )
            measured = show(run(request), show_progress)
    if plan is not None:
        write_plan(planned, json=json)
        return
    _write(measured, written)
    if code := exit_code(measured):
        raise typer.Exit(code)


def _write(bench: "Bench", written: str | None) -> None:
    if written is None:
        from gptfast_cli.render.bench import write_table

        write_table(bench, sys.stdout)
    else:
        from gptfast_cli.render.bench import WRITERS

        WRITERS[written](bench, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)


def exit_code(bench: "Bench") -> ExitCode:
    """What a benchmark ends with."""
    if bench.is_interrupted:
        return ExitCode.INTERRUPTED
    if bench.has_numbers:
        return ExitCode.OK
    return ExitCode.OUT_OF_MEMORY if bench.is_out_of_memory else ExitCode.FAILURE


def _format(output: str | None, *, json: bool) -> str | None:
    """The name of the format; None is the table."""
    if output is not None and output not in _FORMATS:
        raise UsageError(f"--output: there is no format {output!r}.", f"Formats: {', '.join(_FORMATS)}.")
    if json and output not in (None, "json"):
        raise UsageError(f"--json and --output {output} exclude each other.", "Leave out one of them.")
    return "json" if json else output


def _flags(context: typer.Context) -> dict[str | None, str]:
    """The options that were given, as they are written, by the names of their parameters."""
    given = [
        parameter
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) is not None and source.name == "COMMANDLINE"
    ]
    return {parameter.name: parameter.opts[0] if parameter.opts[0].startswith("-") else "MODEL" for parameter in given}


def _refuse_strangers(flags: Mapping[str | None, str], arch: str | None) -> None:
    """Raise UsageError for an option that was given and would not be listened to."""
    for flag in (flags[name] for name in OF_A_PLAN if name in flags):
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


def _lengths(listed: IntegerList) -> tuple[int, ...]:
    """The numbers, of which 0 stands for none at all."""
    return tuple(number for number in listed.numbers if number)
