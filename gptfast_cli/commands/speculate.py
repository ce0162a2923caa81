"""`gptfast speculate`: tells what a draft model will gain, at which depth and batch size, and why."""

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptfast_cli.commands.ranks import ranks
from gptfast_cli.commands.speculate_options import (
    BATCH_SIZES,
    DEPTHS,
    TEMPERATURES,
    AssumeAlphaOption,
    BatchSizesOption,
    CertifyOption,
    DepthsOption,
    DraftOnlyOption,
    DraftsOption,
    ForceOption,
    LimitOption,
    MaxNewTokensOption,
    MinPOption,
    PromptsOption,
    ReportOption,
    RepsOption,
    SaveAdviceOption,
    SeedOption,
    TemperaturesOption,
    TopKOption,
    TopPOption,
)
from gptfast_cli.core.engine.speculative.draft_length import ADVISED
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    ActivationsOption,
    BackendOption,
    ChatOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    ThreadsOption,
    TpOption,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show

if TYPE_CHECKING:
    from gptfast_cli.core.drafts.report import DraftReport

_REPORTS = (".html", ".md", ".json")


def speculate(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    draft: DraftsOption = None,
    k: DepthsOption = DEPTHS,
    batch_size: BatchSizesOption = BATCH_SIZES,
    temperature: TemperaturesOption = TEMPERATURES,
    top_k: TopKOption = 200,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    assume_alpha: AssumeAlphaOption = None,
    draft_only: DraftOnlyOption = False,
    reps: RepsOption = 5,
    certify: CertifyOption = False,
    prompts: PromptsOption = None,
    limit: LimitOption = None,
    chat: ChatOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    seed: SeedOption = 0,
    report: ReportOption = None,
    save_advice: SaveAdviceOption = False,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    tp: TpOption = None,
    backend: BackendOption = None,
    activations: ActivationsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Judge draft models for speculative decoding: what each gains at every depth and batch size, and why.

    Gains are predicted from agreement and costs measured here, and then put to the test. The verdict goes to stdout,
    all else to stderr. Ctrl-C keeps what is known by then.
    """
    _check_report(report)
    if draft_only and len(draft or ()) != 1:
        raise UsageError("--draft-only measures one draft.", "Name it: --draft DRAFT")
    if ADVISED in (draft or ()):
        raise UsageError(
            f"--draft {ADVISED} takes what was found best, and speculate is what finds it.",
            "Name a MODEL, self:int8 or ngram, or leave out --draft for all that suggests itself.",
        )
    group = context.with_resource(ranks(tp))
    with progress_view(sys.stderr, quiet=quiet):  # PyTorch takes a while to load
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.sampling import Sampling
        from gptfast_cli.core.jobs.speculate import SpeculateRequest, run

    runtime = RuntimeConfig(device, dtype, threads, backend, activations, group=group)
    if draft_only and draft:
        from gptfast_cli.commands.draft_only import bench_draft

        raise typer.Exit(bench_draft(draft[0], runtime, batch_size.numbers, n_rounds=reps, json=json, quiet=quiet))
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
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
    _write(judgement, report if group.rank == 0 else None, json=json)
    if judgement.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    is_advice_refused = save_advice and not force and judgement.is_noisy
    if is_advice_refused or not all(certificate.holds for certificate in judgement.losslessness_checks):
        raise typer.Exit(ExitCode.FAILURE)
    if failed := judgement.failed_prompts:
        raise GptFastError(
            f"{len(failed):,} prompts were left out, the first of them {failed[0].name}: {failed[0].reason}",
            "The judgement is of the others; --json lists every one.",
        )


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
    """Raise UsageError before any work where a report could not be written."""
    if report is None:
        return
    if report.suffix not in _REPORTS:
        raise UsageError(f"--report writes {', '.join(_REPORTS)}, and {str(report)!r} is none of them.")
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise UsageError(f"--report cannot write to {str(report)!r}.", "Name a file in a folder that is there.")
