"""`gptfast generate`: continues a prompt, streams the text, and reports the speed.

Three modes share the options: one prompt, a file of prompts (--prompts-file), and a chat (--interactive).
"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from gptfast_cli.commands.generate_options import (
    BatchSizeOption,
    DraftOption,
    IgnoreEosOption,
    InteractiveOption,
    LogprobsOption,
    MaxContextOption,
    MaxNewTokensOption,
    NumSamplesOption,
    OutputOption,
    ProfileOption,
    PromptArgument,
    PromptCacheOption,
    PromptFileOption,
    PromptIdsOption,
    PromptLengthOption,
    PromptsFileOption,
    RepetitionPenaltyOption,
    ReplicasOption,
    SeedOption,
    ShowPromptOption,
    SpeculateKOption,
    StopOption,
    TemperatureOption,
    UnorderedOption,
    VerifyWeightsOption,
)
from gptfast_cli.commands.prompt import PromptSources, shared_prompt
from gptfast_cli.commands.ranks import is_sharded, ranks
from gptfast_cli.core.engine.speculative.draft_length import DEFAULT_DRAFT_LENGTH, DraftOptions, parse_draft_length
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    ChatOption,
    ChatTemplateOption,
    CompileOption,
    CompilePrefillOption,
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    MinPOption,
    ModelOption,
    OutputOptions,
    SystemOption,
    TopKOption,
    TopPOption,
    TpOption,
    is_given,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import View, nothing, progress_view, show
from gptfast_cli.render.samples import SamplesView
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.jobs.generate import GenerateRequest
    from gptfast_cli.core.jobs.generate_batch import BatchRequest

_ONE_PROMPT, _TALK, _FILE = "one prompt", "--interactive", "--prompts-file"
_OF_ONE_PROMPT = ("prompt_file", "prompt_ids", "prompt_length", "prompt_cache", "show_prompt", "profile")
_OF_A_FILE = ("prompts_file", "output", "unordered", "replicas")
_UNEXPECTED: Final = {
    _ONE_PROMPT: _OF_A_FILE,
    _TALK: (*_OF_ONE_PROMPT, *_OF_A_FILE, "num_samples", "batch_size", "logprobs", "json"),
    _FILE: (*_OF_ONE_PROMPT, "prompt"),
}
"""Options that have no effect in a mode."""


@command(
    "generate",
    'gptfast generate -m tiny "Once upon a time" -n 100 --temp 0',
    "gptfast generate -m tiny --draft tiny-draft",
    "gptfast generate -m tiny --interactive",
)
def generate(
    context: typer.Context,
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileOption = None,
    prompt_ids: PromptIdsOption = None,
    prompt_length: PromptLengthOption = None,
    prompt_cache: PromptCacheOption = None,
    show_prompt: ShowPromptOption = False,
    model: ModelOption = None,
    chat: ChatOption = None,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    interactive: InteractiveOption = False,
    prompts_file: PromptsFileOption = None,
    output: OutputOption = None,
    unordered: UnorderedOption = False,
    replicas: ReplicasOption = None,
    max_new_tokens: MaxNewTokensOption = 200,
    stop: StopOption = None,
    ignore_eos: IgnoreEosOption = False,
    max_context: MaxContextOption = None,
    num_samples: NumSamplesOption = 1,
    batch_size: BatchSizeOption = None,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 200,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = None,
    logprobs: LogprobsOption = None,
    compile: CompileOption = False,  # noqa: A002  # the option's name, also in the settings file
    compile_prefill: CompilePrefillOption = False,
    profile: ProfileOption = None,
    draft: DraftOption = None,
    speculate_k: SpeculateKOption = str(DEFAULT_DRAFT_LENGTH),
    hardware: DeviceOptions,
    kv_dtype: KvDtypeOption = "auto",
    tp: TpOption = None,
    engine: EngineOptions,
    verify_weights: VerifyWeightsOption = False,
    printing: OutputOptions,
) -> None:
    """Continue a prompt, or answer it as a chat model, and report the speed.

    The text goes to stdout, everything else to stderr. Ctrl-C keeps the text so far and reports its speed.
    """
    mode = _TALK if interactive else _FILE if prompts_file is not None else _ONE_PROMPT
    _refuse_unexpected(context, mode)
    if draft is None and is_given(context, "speculate_k"):
        hint = "Add --draft DRAFT: a smaller model, self:int8, ngram or auto."
        raise UsageError("--speculate-k requires --draft.", hint)
    if mode == _ONE_PROMPT and logprobs is not None and not printing.json:
        raise UsageError("--logprobs requires --json.", "Add --json.")
    if output is not None and printing.json:
        raise UsageError("--json and --output exclude each other.", "Leave out one of them.")
    if is_sharded(tp):
        _refuse_sharded({_TALK: interactive, "--replicas": replicas})
    group = context.with_resource(ranks(tp))
    if mode == _ONE_PROMPT:
        sources = PromptSources(prompt, prompt_file, prompt_ids, prompt_length)
        source = shared_prompt(sources, group)
    with progress_view(sys.stderr, quiet=printing.quiet):  # PyTorch takes a while to load
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.compiled import Compiling
        from gptfast_cli.core.engine.options import GenerationOptions
        from gptfast_cli.core.engine.sampling import Sampling

    settings = load_settings()
    backend = engine.backend or ("reference" if compile or compile_prefill else None)  # torch.compile
    runtime = RuntimeConfig(
        hardware.device,
        hardware.dtype,
        hardware.threads,
        backend,
        engine.activations,
        verify_weights,
        kv_dtype,
        group,
    )
    options = GenerationOptions(
        sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        num_samples=num_samples,
        n_logprobs=logprobs,
        seed=seed,
        max_context=max_context,
        batch_size=batch_size,
        chat=ChatOptions(chat, system, chat_template),
        drafting=_draft_options(draft, speculate_k, is_length_given=is_given(context, "speculate_k")),
        compiling=Compiling(decode=compile, prefill=compile_prefill),
    )
    if mode == _TALK:
        from gptfast_cli.commands.interactive import interact
        from gptfast_cli.core.jobs.chat import ChatRequest

        interact(ChatRequest(settings, model, runtime, options), prompt, quiet=printing.quiet)
    elif prompts_file is not None:
        from gptfast_cli.core.jobs.generate_batch import BatchRequest

        batch_request = BatchRequest(
            prompts=prompts_file,
            settings=settings,
            model=model,
            runtime=runtime,
            options=options,
            output=output,
            in_order=not unordered,
        )
        _generate_batch(batch_request, replicas, quiet=printing.quiet)
    else:
        from gptfast_cli.core.jobs.generate import GenerateRequest

        request = GenerateRequest(
            prompt=source,
            prompt_length=prompt_length,
            prompt_cache=prompt_cache,
            show_prompt=show_prompt,
            settings=settings,
            model=model,
            runtime=runtime,
            options=options,
        )
        _generate_one(request, profile if group.rank == 0 else None, printing)


def _draft_options(draft: str | None, speculate_k: str, *, is_length_given: bool) -> DraftOptions | None:
    return None if draft is None else DraftOptions(draft, parse_draft_length(speculate_k), is_length_given)


def _generate_one(request: "GenerateRequest", profile: Path | None, printing: OutputOptions) -> None:
    from gptfast_cli.core.jobs.generate import run
    from gptfast_cli.render.generation import write_generation

    job = run(request)
    if profile is not None:
        from gptfast_cli.core.bench.profile import profiled

        job = profiled(job, profile)
    text: AbstractContextManager[View] = nullcontext(nothing)
    if not printing.json:
        text = SamplesView(sys.stdout, n_samples=request.options.num_samples)
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress, text as show_text:
        generation = show(job, show_progress, show_text)
    if printing.json:
        fields = asdict(generation)
        for name in ("speculation", "ranks"):
            if fields[name] is None:
                del fields[name]
        write_document("gptfast.generate/1", fields, sys.stdout)
    elif not printing.quiet:
        write_generation(generation, sys.stderr)
    if any(sample.finish_reason == "interrupted" for sample in generation.samples):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _generate_batch(request: "BatchRequest", n_replicas: int | None, *, quiet: bool) -> None:
    """Answer the rows of a file, in this process or in `n_replicas` processes started with the same command line.

    Raises GptFastError, after all rows, if some failed.
    """
    from gptfast_cli.core.batch.replica import own_part
    from gptfast_cli.core.jobs.generate_batch import run
    from gptfast_cli.core.jobs.replicas import Replicas
    from gptfast_cli.render.generation import records_view, without_records, write_batch

    part = own_part()
    if part is not None:  # this process is a replica: its parent shows progress and writes the output
        request = replace(request, output=None, in_order=False, part=part)
        quiet = True
    elif n_replicas is not None:
        request = replace(request, replicas=Replicas(n_replicas, (sys.executable, "-m", "gptfast_cli", *sys.argv[1:])))
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        if request.output is None:
            batch = show(run(request), show_progress, records_view(sys.stdout))
        else:
            batch = show(run(request), without_records(show_progress))
    if not quiet:
        write_batch(batch, sys.stderr, can_go_on=request.output is not None)
    if batch.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if batch.n_bad:
        raise GptFastError(
            f"{batch.n_bad:,} of {batch.n_rows:,} rows failed.", "The `error` field of their records has the reason."
        )


def _refuse_unexpected(context: typer.Context, mode: str) -> None:
    """Raise UsageError for an option on the command line that has no effect in this mode."""
    for parameter in context.command.params:
        if parameter.name in _UNEXPECTED[mode] and is_given(context, parameter.name):
            flag = parameter.opts[0] if parameter.opts[0].startswith("-") else "PROMPT"
            if mode == _ONE_PROMPT:
                raise UsageError(f"{flag} requires --prompts-file.", "Add --prompts-file FILE.")
            raise UsageError(f"{flag} and {mode} exclude each other.", "gptfast generate --help")


def _refuse_sharded(options: Mapping[str, object]) -> None:
    """Raise UsageError for an option that does not work with tensor parallelism."""
    for flag, value in options.items():
        if value:
            raise UsageError(f"{flag} and --tp exclude each other.", "Leave out one of them.")
