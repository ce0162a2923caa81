"""`gptfast speculate`: judges draft models: acceptance, costs, and predicted and measured speed-ups."""

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptfast_cli.commands.bench import exit_code
from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.engine.speculative.draft_length import ADVISED
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import (
    LARGEST_SEED,
    Integer,
    IntegerList,
    Integers,
    Number,
    NumberList,
    Numbers,
)
from gptfast_cli.options import (
    CASES,
    OUTPUT,
    SAMPLING,
    BatchSizesOption,
    ChatOption,
    DeviceOptions,
    EngineOptions,
    MinPOption,
    ModelArgument,
    ModelOption,
    OutputOptions,
    TopKOption,
    TopPOption,
    TpOption,
    complete_draft,
    complete_file,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.drafts.report import DraftReport
    from gptfast_cli.core.engine.build import RuntimeConfig

_PROMPTS = "Prompts"
_REPORTS = (".html", ".md", ".json")
_DRAFT_LENGTHS = IntegerList("1..8", tuple(range(1, 9)))
_BATCH_SIZES = IntegerList("1,2,4,8", (1, 2, 4, 8))
_TEMPERATURES = NumberList("0,0.8", (0.0, 0.8))


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
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            metavar="DRAFT",
            autocompletion=complete_draft,
            show_default="candidates for the model, and ngram",
            rich_help_panel=CASES,
            help="Draft: a MODEL, self:int8, ngram, or a SHAPE such as tinyllama-1.1b:int4; repeatable.",
        ),
    ] = None,
    k: Annotated[
        IntegerList,
        typer.Option(
            parser=Integers(Integer(1)),
            metavar="1..8",
            rich_help_panel=CASES,
            help="Draft lengths: drafted tokens a round.",
        ),
    ] = _DRAFT_LENGTHS,
    batch_size: BatchSizesOption = _BATCH_SIZES,
    reps: Annotated[
        int, typer.Option(parser=Integer(1), metavar="N", rich_help_panel=CASES, help="Repetitions of each timing.")
    ] = 5,
    draft_only: Annotated[
        bool, typer.Option("--draft-only", rich_help_panel=CASES, help="Measure the decode speed of one draft only.")
    ] = False,
    assume_alpha: Annotated[
        float | None,
        typer.Option(
            parser=Number(0, 1),
            metavar="A",
            rich_help_panel=CASES,
            help="Assume this acceptance probability, for a draft that is not trained yet.",
        ),
    ] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            rich_help_panel=CASES,
            help="Losslessness check: the same text, or the same distribution, as without a draft.",
        ),
    ] = False,
    temperature: Annotated[
        NumberList,
        typer.Option(
            "--temperature",
            "--temp",
            parser=Numbers(Number()),
            metavar="0,0.8",
            rich_help_panel=SAMPLING,
            help="Temperatures; each has its own texts.",
        ),
    ] = _TEMPERATURES,
    top_k: TopKOption = 200,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    seed: Annotated[
        int, typer.Option(parser=Integer(0, LARGEST_SEED), metavar="N", rich_help_panel=SAMPLING, help="Random seed.")
    ] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            autocompletion=complete_file,
            show_default="60 bundled ones",
            rich_help_panel=_PROMPTS,
            help='JSON lines such as {"prompt": "...", "category": "..."}.',
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=Integer(1), metavar="N", rich_help_panel=_PROMPTS, help="Maximum number of prompts."),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "-n",
            parser=Integer(2),
            metavar="N",
            rich_help_panel=_PROMPTS,
            help="Maximum number of new tokens after each prompt.",
        ),
    ] = 128,
    chat: ChatOption = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            autocompletion=complete_file,
            rich_help_panel=OUTPUT,
            help="Write a report to this .html, .md or .json file.",
        ),
    ] = None,
    save_advice: Annotated[
        bool,
        typer.Option(
            "--save-advice", rich_help_panel=OUTPUT, help="Save the recommendation for generate --draft auto."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Save it even if the machine is noisy.")
    ] = False,
    hardware: DeviceOptions,
    tp: TpOption = None,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Judge draft models for speculative decoding: the speed-up of each at every draft length and batch size.

    Speed-ups are predicted from measured acceptance and costs, and validated by real runs. The report goes to stdout,
    everything else to stderr. Ctrl-C keeps the results so far.
    """
    _check_report(report)
    if draft_only and len(draft or ()) != 1:
        raise UsageError("--draft-only requires exactly one --draft.", "Name it: --draft DRAFT")
    if ADVISED in (draft or ()):
        raise UsageError(
            f"--draft {ADVISED} is only for generate: it reads the advice that speculate saves.",
            "Name a MODEL, self:int8 or ngram, or leave out --draft for the default candidates.",
        )
    group = context.with_resource(ranks(tp))
    with progress_view(sys.stderr, quiet=printing.quiet):  # PyTorch takes a while to load
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.sampling import Sampling
        from gptfast_cli.core.jobs.speculate import SpeculateRequest, run

    runtime = RuntimeConfig(
        hardware.device, hardware.dtype, hardware.threads, engine.backend, engine.activations, group=group
    )
    if draft_only and draft:
        raise typer.Exit(_bench_draft(draft[0], runtime, batch_size.numbers, n_rounds=reps, printing=printing))
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        request = SpeculateRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            drafts=tuple(draft or ()),
            runtime=runtime,
            draft_lengths=k.numbers,
            batch_sizes=batch_size.numbers,
            temperatures=temperature.numbers,
            sampling=Sampling(0.0, top_k, top_p, min_p),
            prompts=prompts,
            limit=limit,
            chat=ChatOptions(chat),
            max_new_tokens=max_new_tokens,
            alpha=assume_alpha,
            n_times=reps,
            certify=certify,
            save_advice=save_advice,
            force=force,
            seed=seed,
        )
        judgement = show(run(request), show_progress)
    _write(judgement, report if group.rank == 0 else None, json=printing.json)
    if judgement.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    is_advice_refused = save_advice and not force and judgement.is_noisy
    if is_advice_refused or not all(check.holds for check in judgement.losslessness_checks):
        raise typer.Exit(ExitCode.FAILURE)
    if failed := judgement.failed_prompts:
        raise GptFastError(
            f"{len(failed):,} prompts failed; the first is {failed[0].name}: {failed[0].reason}",
            "The report is of the other prompts; --json lists all failures.",
        )


def _bench_draft(
    draft: str, runtime: "RuntimeConfig", batch_sizes: tuple[int, ...], *, n_rounds: int, printing: OutputOptions
) -> ExitCode:
    """Measure the decode speed of a draft, a MODEL or a SHAPE, without a target."""
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
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
            cases=CaseOptions(prompt_lens=(), batch_sizes=batch_sizes),
            n_rounds=n_rounds,
        )
        bench = show(run(request), show_progress)
    if printing.json:
        from gptfast_cli.render.bench import write_json

        write_json(bench, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)
    else:
        from gptfast_cli.render.bench import write_table

        write_table(bench, sys.stdout)
    return exit_code(bench)


def _write(judgement: "DraftReport", report: Path | None, *, json: bool) -> None:
    from gptfast_cli.core.files import write_whole
    from gptfast_cli.render.report.document import write_json
    from gptfast_cli.render.report.html import write_html
    from gptfast_cli.render.report.text import write_markdown, write_text

    command = shlex.join(["gptfast", *sys.argv[1:]])
    if report is not None:
        written = io.StringIO()
        {".html": write_html, ".md": write_markdown, ".json": write_json}[report.suffix](judgement, command, written)
        write_whole(report, written.getvalue())
    if json:
        write_json(judgement, command, sys.stdout)
    else:
        write_text(judgement, sys.stdout)


def _check_report(report: Path | None) -> None:
    """Raise UsageError, before any work, for a report that cannot be written."""
    if report is None:
        return
    if report.suffix not in _REPORTS:
        raise UsageError(f"--report writes {', '.join(_REPORTS)}, not {str(report)!r}.")
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise UsageError(f"--report cannot write to {str(report)!r}.", "Name a file in an existing folder.")
