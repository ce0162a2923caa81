"""`gptfast generate`: continues a prompt, streams the text, and reports the speed.

Three modes share the options: one prompt, a file of prompts (--prompts-file), and a chat (--interactive).
"""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import typer

from gptfast_cli.commands.prompt import DEFAULT, PromptSources, shared_prompt
from gptfast_cli.commands.ranks import is_sharded, ranks
from gptfast_cli.core.engine.speculative.draft_length import DEFAULT_DRAFT_LENGTH, DraftOptions, parse_draft_length
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import Integer, IntegerOrAuto, Number
from gptfast_cli.options import (
    CHAT,
    MACHINE,
    SAMPLING,
    SPEED,
    ChatOption,
    CompileOptions,
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    ModelOption,
    OutputOptions,
    TemplateOptions,
    TpOption,
    complete_draft_or_advice,
    integer_option,
    is_given,
    min_p_option,
    number_option,
    path_option,
    seed_option,
    top_k_option,
    top_p_option,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import View, nothing, progress_view, show
from gptfast_cli.render.samples import SamplesView
from gptfast_cli.tree import command

if TYPE_CHECKING:
    from gptfast_cli.core.jobs.generate import GenerateRequest
    from gptfast_cli.core.jobs.generate_batch import BatchRequest

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=DEFAULT,
        help="Text to continue, or message to a chat model; -: read stdin. A piped stdin is read without it.",
    ),
]
InteractiveOption = Annotated[
    bool, typer.Option("--interactive", rich_help_panel=CHAT, help="Chat turn by turn, reusing the KV cache.")
]
VerifyWeightsOption = Annotated[
    bool,
    typer.Option("--verify-weights", rich_help_panel=MACHINE, help="Check the SHA-256 of the weights before loading."),
]


def _or_model(usual: str) -> str:
    """The default of an option that the model's makers may have one for."""
    return f"the model's, or {usual}"


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """A single prompt from elsewhere than the argument."""

    panel: ClassVar = "Prompt"
    prompt_file: Annotated[Path | None, path_option("FILE", "Text file of the prompt.")] = None
    prompt_ids: Annotated[str | None, typer.Option(metavar="1,2,3", help="Prompt as token ids.")] = None
    prompt_length: Annotated[int | None, integer_option(1, "Synthetic prompt of N tokens, for timing.")] = None
    prompt_cache: Annotated[
        Path | None,
        path_option("FILE", "Save the KV cache of the prompt to this file, and reuse it in later runs."),
    ] = None
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="Show the prompt after the chat template.")] = False


@dataclass(frozen=True, slots=True)
class TemplateVariableOptions:
    """Variables of the chat template."""

    panel: ClassVar = CHAT
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            show_default="the chat template's",
            help="Reason before the answer, or not: sets enable_thinking and thinking.",
        ),
    ] = None
    template_var: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=JSON", help="Variable of the chat template; repeatable."),
    ] = None

    def variables(self) -> dict[str, Any]:
        """The variables by name. Raises UsageError for a value that is not JSON."""
        from gptfast_cli.core.engine.chat import thinking_variables

        given = {} if self.think is None else thinking_variables(think=self.think)
        return given | dict(map(_variable, self.template_var or ()))


def _variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--template-var takes KEY=JSON, not {text!r}.", "--template-var enable_thinking=false")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--template-var {name}: {value!r} is not JSON.", f"A text is quoted: --template-var '{name}=\"{value}\"'"
        ) from error


@dataclass(frozen=True, slots=True)
class FileOptions:
    """A file of prompts and the file of their answers."""

    panel: ClassVar = "File of prompts"
    prompts_file: Annotated[Path | None, path_option("FILE", "JSON-lines file of prompts; answers are JSON lines.")] = (
        None
    )
    output: Annotated[
        Path | None,
        path_option(
            "FILE", "File of the answers; an interrupted run resumes when the command is repeated.", usual="stdout"
        ),
    ] = None
    unordered: Annotated[bool, typer.Option("--unordered", help="Write answers as they finish, not in file order.")] = (
        False
    )
    replicas: Annotated[
        int | None,
        integer_option(1, "Data parallelism: N processes, each with one GPU or a part of the cores.", usual="none"),
    ] = None


@dataclass(frozen=True, slots=True)
class LengthOptions:
    """When an answer ends, how many there are, and how many are decoded together."""

    panel: ClassVar = "Length and number of samples"
    max_new_tokens: Annotated[
        int | None,
        integer_option(
            1,
            "Maximum number of new tokens.",
            "--max-new-tokens",
            "-n",
            usual=_or_model("200; in a chat until the end of the answer"),
        ),
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Stop before this text or special token; repeatable.")
    ] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue after end-of-sequence tokens.")] = False
    max_context: Annotated[
        int | None, integer_option(1, "Maximum context length in tokens, prompt included.", usual="the model's")
    ] = None
    num_samples: Annotated[int, integer_option(1, "Number of samples of the prompt.")] = 1
    batch_size: Annotated[
        int | None,
        integer_option(1, "Maximum batch size: samples decoded together.", usual="all samples; 8 for a file"),
    ] = None


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are sampled, and what is reported of their probabilities."""

    panel: ClassVar = SAMPLING
    temperature: Annotated[
        float | None,
        number_option(
            Number(), "T", "Sampling temperature; 0: greedy.", "--temperature", "--temp", usual=_or_model("0.8")
        ),
    ] = None
    top_k: Annotated[int | None, top_k_option(usual=_or_model("200"))] = None
    top_p: Annotated[float | None, top_p_option(usual=_or_model("1"))] = None
    min_p: Annotated[float | None, min_p_option(usual=_or_model("0"))] = None
    repetition_penalty: Annotated[
        float | None,
        number_option(
            Number(is_closed=False),
            "R",
            "Repetition penalty; 1: off, above 1: less repetition.",
            usual=_or_model("1"),
        ),
    ] = None
    no_model_defaults: Annotated[
        bool,
        typer.Option("--no-model-defaults", help="Ignore the defaults in the model's generation_config.json."),
    ] = False
    seed: Annotated[
        int | None,
        seed_option("Random seed; the same seed gives the same text on the same backend.", usual="random"),
    ] = None
    logprobs: Annotated[
        int | None,
        integer_option(0, "Log-probabilities of each token and of the N most likely ones; requires --json."),
    ] = None


@dataclass(frozen=True, slots=True)
class SpeedOptions:
    """Profile and speculative decoding."""

    panel: ClassVar = SPEED
    profile: Annotated[Path | None, path_option("FILE", "Write a profiler trace for Perfetto: .json or .json.gz.")] = (
        None
    )
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            autocompletion=complete_draft_or_advice,
            help="Speculative decoding with a smaller MODEL, self:int8, ngram, or auto (from speculate --save-advice).",
        ),
    ] = None
    speculate_k: Annotated[
        str,
        typer.Option(
            parser=IntegerOrAuto(Integer()),
            metavar="N",
            help="Draft length: drafted tokens a round, or auto (adaptive).",
        ),
    ] = str(DEFAULT_DRAFT_LENGTH)


_ONE_PROMPT, _INTERACTIVE, _FILE = "one prompt", "--interactive", "--prompts-file"
_OF_ONE_PROMPT = (*(field.name for field in fields(PromptOptions)), "profile")
_OF_A_FILE = tuple(field.name for field in fields(FileOptions))
_WITHOUT_EFFECT: Final = {
    _ONE_PROMPT: _OF_A_FILE,
    _INTERACTIVE: (*_OF_ONE_PROMPT, *_OF_A_FILE, "num_samples", "batch_size", "logprobs", "json"),
    _FILE: (*_OF_ONE_PROMPT, "prompt"),
}
"""Options that have no effect in a mode."""

_DOCUMENT: Final = "* -speculation -ranks speculation? ranks?"
_SAMPLE: Final = "* -content -reasoning content? reasoning?"
"""The keys of --json, see `render.json`."""


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
    single: PromptOptions,
    model: ModelOption = None,
    chat: ChatOption = None,
    template: TemplateOptions,
    template_variables: TemplateVariableOptions,
    interactive: InteractiveOption = False,
    file: FileOptions,
    length: LengthOptions,
    sampling: SamplingOptions,
    compiled: CompileOptions,
    speed: SpeedOptions,
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
    mode = _INTERACTIVE if interactive else _FILE if file.prompts_file is not None else _ONE_PROMPT
    _refuse_unexpected(context, mode)
    has_draft_length = is_given(context, "speculate_k")
    if speed.draft is None and has_draft_length:
        hint = "Add --draft DRAFT: a smaller model, self:int8, ngram or auto."
        raise UsageError("--speculate-k requires --draft.", hint)
    if mode == _ONE_PROMPT and sampling.logprobs is not None and not printing.json:
        raise UsageError("--logprobs requires --json.", "Add --json.")
    if file.output is not None and printing.json:
        raise UsageError("--json and --output exclude each other.", "Leave out one of them.")
    if is_sharded(tp):
        _refuse_sharded({_INTERACTIVE: interactive, "--replicas": file.replicas})
    group = context.with_resource(ranks(tp))
    if mode == _ONE_PROMPT:
        sources = PromptSources(prompt, single.prompt_file, single.prompt_ids, single.prompt_length)
        source = shared_prompt(sources, group)
    with progress_view(sys.stderr, quiet=printing.quiet):  # PyTorch takes a while to load
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.engine.compiled import Compiling
        from gptfast_cli.core.engine.options import MODEL_DEFAULTS, GenerationOptions
        from gptfast_cli.core.engine.sampling import Sampling

    settings = load_settings()
    engine = compiled.engine(engine)
    runtime = RuntimeConfig(
        **asdict(hardware),
        **asdict(engine),
        max_context=length.max_context,
        verify=verify_weights,
        kv_dtype=kv_dtype,
        group=group,
    )
    given = {name: value for name, value in (asdict(sampling) | asdict(length)).items() if value not in (None, [])}
    options = GenerationOptions(
        sampling=Sampling(**{field.name: given[field.name] for field in fields(Sampling) if field.name in given}),
        max_new_tokens=length.max_new_tokens,
        stop=tuple(length.stop or ()),
        ignore_eos=length.ignore_eos,
        num_samples=length.num_samples,
        n_logprobs=sampling.logprobs,
        seed=sampling.seed,
        max_context=length.max_context,
        batch_size=length.batch_size,
        chat=ChatOptions(chat, template.system, template.chat_template, template_variables.variables()),
        drafting=None
        if speed.draft is None
        else DraftOptions(speed.draft, parse_draft_length(speed.speculate_k), has_draft_length),
        compiling=Compiling(compiled.compile, compiled.compile_prefill),
        unset=frozenset() if sampling.no_model_defaults else MODEL_DEFAULTS - given.keys(),
    )
    if mode == _INTERACTIVE:
        from gptfast_cli.commands.interactive import interact
        from gptfast_cli.core.jobs.chat import ChatRequest

        interact(ChatRequest(settings, model, runtime, options), prompt, quiet=printing.quiet)
    elif file.prompts_file is not None:
        from gptfast_cli.core.jobs.generate_batch import BatchRequest

        batch_request = BatchRequest(
            prompts=file.prompts_file,
            settings=settings,
            model=model,
            runtime=runtime,
            options=options,
            output=file.output,
            in_order=not file.unordered,
        )
        _generate_batch(batch_request, file.replicas, quiet=printing.quiet)
    else:
        from gptfast_cli.core.jobs.generate import GenerateRequest

        request = GenerateRequest(
            prompt=source,
            prompt_length=single.prompt_length,
            prompt_cache=single.prompt_cache,
            show_prompt=single.show_prompt,
            settings=settings,
            model=model,
            runtime=runtime,
            options=options,
        )
        _generate_one(request, speed.profile if group.rank == 0 else None, printing)


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
        keys = {type(generation): _DOCUMENT} | {type(sample): _SAMPLE for sample in generation.samples}
        write_document("gptfast.generate/1", generation, sys.stdout, keys)
    elif not printing.quiet:
        write_generation(generation, sys.stderr)
    if any(sample.finish_reason == "interrupted" for sample in generation.samples):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _generate_batch(request: "BatchRequest", n_replicas: int | None, *, quiet: bool) -> None:
    """Answer the rows of a file, in this process or in `n_replicas` processes started with the same command line.

    Raises GptFastError, after all rows, if some failed.
    """
    from gptfast_cli.core.batch.replicas import Replicas, replica_part
    from gptfast_cli.core.jobs.generate_batch import run
    from gptfast_cli.render.generation import records_view, without_records, write_batch

    part = replica_part()
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
        if parameter.name in _WITHOUT_EFFECT[mode] and is_given(context, parameter.name):
            flag = parameter.opts[0] if parameter.opts[0].startswith("-") else "PROMPT"
            if mode == _ONE_PROMPT:
                raise UsageError(f"{flag} requires --prompts-file.", "Add --prompts-file FILE.")
            raise UsageError(f"{flag} and {mode} exclude each other.", "gptfast generate --help")


def _refuse_sharded(options: Mapping[str, object]) -> None:
    """Raise UsageError for an option that does not work with tensor parallelism."""
    for flag, value in options.items():
        if value:
            raise UsageError(f"{flag} and --tp exclude each other.", "Leave out one of them.")
