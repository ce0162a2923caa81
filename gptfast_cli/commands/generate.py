"""`gptfast generate`: text that continues a prompt, as it comes, and how fast it came.

Three modes share the options: one prompt, a file of prompts (`generate_batch`), and a talk (`interactive`).
"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from gptfast_cli.commands.generate_options import (
    BatchSizeOption,
    ChatTemplateOption,
    CompileOption,
    CompilePrefillOption,
    DraftOption,
    IgnoreEosOption,
    InteractiveOption,
    LogprobsOption,
    MaxContextOption,
    MaxNewTokensOption,
    MinPOption,
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
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    UnorderedOption,
    VerifyWeightsOption,
)
from gptfast_cli.commands.prompt import PromptSources, shared_prompt
from gptfast_cli.commands.ranks import is_dealt_out, ranks
from gptfast_cli.core.engine.speculative.draft_length import DEFAULT_DRAFT_LENGTH, DraftOptions, parse_draft_length
from gptfast_cli.core.errors import ExitCode, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    ActivationsOption,
    BackendOption,
    ChatOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KvDtypeOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
    TpOption,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import (
    View,
    nothing,
    progress_view,
    show,
)
from gptfast_cli.render.samples import SamplesView

if TYPE_CHECKING:
    from gptfast_cli.core.jobs.generate import GenerateRequest

_ONE_PROMPT, _TALK, _FILE = "one prompt", "--interactive", "--prompts-file"
_OF_ONE_PROMPT = ("prompt_file", "prompt_ids", "prompt_length", "prompt_cache", "show_prompt", "profile")
_OF_A_FILE = ("prompts_file", "output", "unordered", "replicas")
_STRANGERS: Final = {
    _ONE_PROMPT: _OF_A_FILE,
    _TALK: (*_OF_ONE_PROMPT, *_OF_A_FILE, "num_samples", "batch_size", "logprobs", "json"),
    _FILE: (*_OF_ONE_PROMPT, "prompt"),
}
"""Options that a mode has no use for."""


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
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    kv_dtype: KvDtypeOption = "auto",
    threads: ThreadsOption = None,
    tp: TpOption = None,
    backend: BackendOption = None,
    activations: ActivationsOption = None,
    verify_weights: VerifyWeightsOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt with text, or answer it, and show how fast.

    The text goes to stdout, all else to stderr. Ctrl-C keeps the text and shows its numbers.
    """
    mode = _TALK if interactive else _FILE if prompts_file is not None else _ONE_PROMPT
    _refuse_strangers(context, mode)
    if draft is None and _is_given(context, "speculate_k"):
        hint = "Add --draft DRAFT: a smaller model, self:int8, ngram or auto."
        raise UsageError("--speculate-k requires --draft.", hint)
    if mode == _ONE_PROMPT and logprobs is not None and not json:
        raise UsageError("--logprobs requires --json.", "Add --json.")
    if output is not None and json:
        raise UsageError("--json writes to stdout, and --output to a file.", "Leave out one of them.")
    if is_dealt_out(tp):
        _refuse_in_parts({_TALK: interactive, "--replicas": replicas})
    group = context.with_resource(ranks(tp))
    if mode == _ONE_PROMPT:
        sources = PromptSources(prompt, prompt_file, prompt_ids, prompt_length)
        source = shared_prompt(sources, group)
    with progress_view(sys.stderr, quiet=quiet):  # PyTorch takes a while to load
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.compiled import Compiling
        from gptfast_cli.core.engine.options import GenerationOptions
        from gptfast_cli.core.engine.sampling import Sampling

    settings = load_settings()
    chosen = backend or ("reference" if compile or compile_prefill else None)  # it is PyTorch that compiles
    runtime = RuntimeConfig(device, dtype, threads, chosen, activations, verify_weights, kv_dtype, group)
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
        drafting=_draft_options(draft, speculate_k, is_length_given=_is_given(context, "speculate_k")),
        compiling=Compiling(decode=compile, prefill=compile_prefill),
    )
    if mode == _TALK:
        from gptfast_cli.commands.interactive import interact
        from gptfast_cli.core.jobs.chat import ChatRequest

        interact(ChatRequest(settings, model, runtime, options), prompt, quiet=quiet)
    elif prompts_file is not None:
        from gptfast_cli.commands.generate_batch import generate_batch
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
        generate_batch(batch_request, replicas, quiet=quiet)
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
        _generate_one(request, profile if group.rank == 0 else None, json=json, quiet=quiet)


def _draft_options(draft: str | None, speculate_k: str, *, is_length_given: bool) -> DraftOptions | None:
    return None if draft is None else DraftOptions(draft, parse_draft_length(speculate_k), is_length_given)


def _generate_one(request: "GenerateRequest", profile: Path | None, *, json: bool, quiet: bool) -> None:
    from gptfast_cli.core.jobs.generate import run
    from gptfast_cli.render.generation import write_generation

    job = run(request)
    if profile is not None:
        from gptfast_cli.core.bench.profile import profiled

        job = profiled(job, profile)
    text: AbstractContextManager[View] = nullcontext(nothing)
    if not json:
        text = SamplesView(sys.stdout, n_samples=request.options.num_samples)
    with progress_view(sys.stderr, quiet=quiet) as show_progress, text as show_text:
        generation = show(job, show_progress, show_text)
    if json:
        fields = asdict(generation)
        for name in ("speculation", "ranks"):
            if fields[name] is None:
                del fields[name]
        write_document("gptfast.generate/1", fields, sys.stdout)
    elif not quiet:
        write_generation(generation, sys.stderr)
    if any(sample.finish_reason == "interrupted" for sample in generation.samples):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _refuse_strangers(context: typer.Context, mode: str) -> None:
    """Raise UsageError for an option that was given and would not be listened to."""
    for parameter in context.command.params:
        if parameter.name in _STRANGERS[mode] and _is_given(context, parameter.name):
            flag = parameter.opts[0] if parameter.opts[0].startswith("-") else "PROMPT"
            if mode == _ONE_PROMPT:
                raise UsageError(f"{flag} needs a file of prompts.", "--prompts-file FILE")
            raise UsageError(f"{flag} and {mode} exclude each other.", "gptfast generate --help")


def _refuse_in_parts(options: Mapping[str, object]) -> None:
    """Raise UsageError for an option that was given, and that a model dealt out to ranks does not serve."""
    for flag, value in options.items():
        if value:
            raise UsageError(f"{flag} does not work with --tp.", "Leave out one of them.")


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was written on the command line, rather than in a file or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
