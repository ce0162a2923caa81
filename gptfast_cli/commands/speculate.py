"""`gptfast speculate`: judges draft models: acceptance, costs, and predicted and measured speed-ups."""

import io
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from gptfast_cli.commands.bench import exit_code, write_bench
from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.engine.speculative.draft_length import ADVISED
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import IntegerList, Number, NumberList, Numbers
from gptfast_cli.options import (
    CASES,
    OUTPUT,
    SAMPLING,
    BatchSizesOption,
    ChatOption,
    DeviceOptions,
    EngineOptions,
    ModelArgument,
    ModelOption,
    OutputOptions,
    TpOption,
    check_output_file,
    complete_draft,
    integer_option,
    integers_option,
    min_p_option,
    model_given,
    name_option,
    number_option,
    path_option,
    seed_option,
    top_k_option,
    top_p_option,
)
from gptfast_cli.render.progress import View, progress_view, show
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.bench.record import Bench
    from gptfast_cli.core.drafts.report import DraftReport
    from gptfast_cli.core.engine.build import RuntimeConfig

_REPORTS = (".html", ".md", ".json")
_DRAFT_LENGTHS = IntegerList("1..8", tuple(range(1, 9)))
_BATCH_SIZES = IntegerList("1,2,4,8", (1, 2, 4, 8))
_TEMPERATURES = NumberList("0,0.8", (0.0, 0.8))


@dataclass(frozen=True, slots=True)
class DraftCaseOptions:
    """The drafts, and what is measured of them."""

    panel: ClassVar = CASES
    draft: Annotated[
        list[str] | None,
        name_option(
            "DRAFT",
            complete_draft,
            "Draft: a MODEL, self:int8, ngram, or a SHAPE such as tinyllama-1.1b:int4; repeatable.",
            usual="candidates for the model, and ngram",
        ),
    ] = None
    k: Annotated[IntegerList, integers_option(1, "1..8", "Draft lengths: drafted tokens a round.")] = _DRAFT_LENGTHS
    batch_size: BatchSizesOption = _BATCH_SIZES
    reps: Annotated[int, integer_option(1, "Repetitions of each timing.")] = 5
    draft_only: Annotated[bool, typer.Option("--draft-only", help="Measure the decode speed of one draft only.")] = (
        False
    )
    assume_alpha: Annotated[
        float | None,
        number_option(Number(0, 1), "A", "Assume this acceptance probability, for a draft that is not trained yet."),
    ] = None
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Losslessness check: the same text, or the same distribution, as without a draft.",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the target samples its texts."""

    panel: ClassVar = SAMPLING
    temperature: Annotated[
        NumberList,
        typer.Option(
            "--temperature",
            "--temp",
            parser=Numbers(Number()),
            metavar="0,0.8",
            help="Temperatures; each has its own texts.",
        ),
    ] = _TEMPERATURES
    top_k: Annotated[int, top_k_option()] = 200
    top_p: Annotated[float, top_p_option()] = 1.0
    min_p: Annotated[float, min_p_option()] = 0.0
    seed: Annotated[int, seed_option()] = 0


@dataclass(frozen=True, slots=True)
class PromptSetOptions:
    """The prompts, and how long the texts after them are."""

    panel: ClassVar = "Prompts"
    prompts: Annotated[
        Path | None,
        path_option("FILE", 'JSON lines such as {"prompt": "...", "category": "..."}.', usual="60 bundled ones"),
    ] = None
    limit: Annotated[int | None, integer_option(1, "Maximum number of prompts.")] = None
    max_new_tokens: Annotated[
        int, integer_option(2, "Maximum number of new tokens after each prompt.", "--max-new-tokens", "-n")
    ] = 128


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What is written beside the report on stdout."""

    panel: ClassVar = OUTPUT
    report: Annotated[Path | None, path_option("FILE", "Write a report to this .html, .md or .json file.")] = None
    save_advice: Annotated[
        bool, typer.Option("--save-advice", help="Save the recommendation for generate --draft auto.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Save it even if the machine is noisy.")] = False


@command(
    "speculate",
    "gptfast speculate -m tiny --draft tiny-draft",
    "gptfast speculate -m tiny --draft self:int8 --draft ngram --report drafts.html",
    "gptfast speculate -m tiny --draft tiny-draft --batch-size 1,4 --save-advice",
)
def speculate(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    cases: DraftCaseOptions,
    sampling: SamplingOptions,
    texts: PromptSetOptions,
    chat: ChatOption = None,
    saving: ReportOptions,
    hardware: DeviceOptions,
    tp: TpOption = None,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Judge draft models for speculative decoding: the speed-up of each at every draft length and batch size.

    Speed-ups are predicted from measured acceptance and costs, and validated by real runs. The report goes to stdout,
    everything else to stderr. Ctrl-C keeps the results so far.
    """
    drafts = tuple(cases.draft or ())
    check_output_file("--report", saving.report, _REPORTS)
    if cases.draft_only and len(drafts) != 1:
        raise UsageError("--draft-only requires exactly one --draft.", "Name it: --draft DRAFT")
    if ADVISED in drafts:
        raise UsageError(
            f"--draft {ADVISED} is only for generate: it reads the advice that speculate saves.",
            "Name a MODEL, self:int8 or ngram, or leave out --draft for the default candidates.",
        )
    group = context.with_resource(ranks(tp))
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.sampling import Sampling
        from gptfast_cli.core.jobs.speculate import SpeculateRequest, run

        runtime = RuntimeConfig(**asdict(hardware), **asdict(engine), group=group)
        if cases.draft_only:
            bench = _bench_draft(drafts[0], runtime, cases, show_progress)
        else:
            request = SpeculateRequest(
                settings=load_settings(),
                model=model_given(context, model_argument, model),
                drafts=drafts,
                runtime=runtime,
                draft_lengths=cases.k.numbers,
                batch_sizes=cases.batch_size.numbers,
                temperatures=sampling.temperature.numbers,
                sampling=Sampling(0.0, sampling.top_k, sampling.top_p, sampling.min_p),
                prompts=texts.prompts,
                limit=texts.limit,
                chat=ChatOptions(chat),
                max_new_tokens=texts.max_new_tokens,
                alpha=cases.assume_alpha,
                n_times=cases.reps,
                certify=cases.certify,
                save_advice=saving.save_advice,
                force=saving.force,
                seed=sampling.seed,
            )
            found = show(run(request), show_progress)
    if cases.draft_only:
        write_bench(bench, "json" if printing.json else None)
        raise typer.Exit(exit_code(bench))
    _write(found, saving.report if group.rank == 0 else None, json=printing.json)
    if found.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    is_advice_refused = saving.save_advice and not saving.force and found.is_noisy
    if is_advice_refused or not all(check.holds for check in found.losslessness_checks):
        raise typer.Exit(ExitCode.FAILURE)
    if failed := found.failed_prompts:
        raise GptFastError(
            f"{len(failed):,} prompts failed; the first is {failed[0].name}: {failed[0].reason}",
            "The report is of the other prompts; --json lists all failures.",
        )


def _bench_draft(draft: str, runtime: "RuntimeConfig", cases: DraftCaseOptions, show_progress: View) -> "Bench":
    """Measure the decode speed of a draft, a MODEL or a SHAPE, without a target."""
    from gptfast_cli.core.bench.workload import CaseOptions
    from gptfast_cli.core.drafts.candidates import is_shape, shape_and_storage
    from gptfast_cli.core.jobs.bench import BenchRequest, run
    from gptfast_cli.core.quantize.allocation import AllocationOptions

    shape, storage = shape_and_storage(draft) if is_shape(draft) else (None, AllocationOptions("plain"))
    request = BenchRequest(
        settings=load_settings(),
        model=draft if shape is None else None,
        arch=shape,
        allocation=storage,
        runtime=runtime,
        cases=CaseOptions(prompt_lens=(), batch_sizes=cases.batch_size.numbers),
        n_rounds=cases.reps,
    )
    return show(run(request), show_progress)


def _write(found: "DraftReport", report: Path | None, *, json: bool) -> None:
    from gptfast_cli.core.files import write_whole
    from gptfast_cli.render.report.document import write_json
    from gptfast_cli.render.report.html import write_html
    from gptfast_cli.render.report.text import write_markdown, write_text

    command = shlex.join(["gptfast", *sys.argv[1:]])
    if report is not None:
        written = io.StringIO()
        {".html": write_html, ".md": write_markdown, ".json": write_json}[report.suffix](found, command, written)
        write_whole(report, written.getvalue())
    if json:
        write_json(found, command, sys.stdout)
    else:
        write_text(found, sys.stdout)
