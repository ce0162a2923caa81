"""`gptfast eval`: accuracy on tasks, perplexity of a text, and KL divergence from another model."""

import sys
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer

from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import Number
from gptfast_cli.options import (
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    ModelOption,
    OutputOptions,
    TemplateOptions,
    TpOption,
    choices,
    complete_backend,
    complete_dtype,
    complete_model,
    integer_option,
    model_given,
    name_option,
    number_option,
    path_option,
    seed_option,
)
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import GptFastCommand, command

_TAKES_WORDS: Final = "--tasks"


ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        autocompletion=complete_model,
        show_default="the current one",
        help="Model to measure: as --model. Several with --against.",
    ),
]


def _complete_protocol() -> list[str]:
    from gptfast_cli.core.evals.protocols import usual_protocols

    return usual_protocols()


class WordsCommand(GptFastCommand):
    """`--tasks a b` is read as `--tasks a,b`, as lm_eval's argparse does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # typer has no public name for it
        return super().parse_args(ctx, joined(args))


def joined(arguments: list[str]) -> list[str]:
    """The arguments, with the words after `--tasks` joined by commas."""
    if _TAKES_WORDS not in arguments:
        return arguments
    first = arguments.index(_TAKES_WORDS) + 1
    end = next((n for n in range(first, len(arguments)) if arguments[n].startswith("-")), len(arguments))
    words = [",".join(arguments[first:end])] if end > first else []
    return [*arguments[:first], *words, *arguments[end:]]


@dataclass(frozen=True, slots=True)
class QuestionOptions:
    """Tasks, their questions, and where results go."""

    panel: ClassVar = "Tasks"
    tasks: Annotated[
        str | None,
        name_option(
            "NAME...",
            choices("bundled", "bundled-choice", "bundled-cloze", "bundled-sums"),
            "Tasks, groups or patterns, separated by spaces or commas.",
            usual="the bundled ones",
        ),
    ] = None
    limit: Annotated[
        float | None,
        number_option(
            Number(is_closed=False),
            "N",
            "Maximum number of questions of each task, or their share if below 1.",
            usual="all",
        ),
    ] = None
    num_fewshot: Annotated[
        int | None, integer_option(0, "Number of solved examples before each question.", usual="the task's")
    ] = None
    include_path: Annotated[
        Path | None, path_option("FOLDER", "Folder of further tasks, as YAML of lm-evaluation-harness.")
    ] = None
    output_path: Annotated[
        Path | None,
        path_option("FOLDER", "Folder for results and samples, in the layout of lm-evaluation-harness."),
    ] = None
    batch_size: Annotated[int, integer_option(1, "Batch size: sequences evaluated together.")] = 8
    seed: Annotated[int, seed_option("Random seed of few-shot examples and sampled answers.")] = 1234
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Format questions with the chat template.")] = False


@dataclass(frozen=True, slots=True)
class PerplexityOptions:
    """A text and its windows."""

    panel: ClassVar = "Perplexity"
    text: Annotated[Path | None, path_option("FILE", "Measure the perplexity of this text.")] = None
    protocol: Annotated[
        str | None,
        name_option(
            "PROTOCOL",
            _complete_protocol,
            "Windows of the text: gptq-2048, llamacpp-512, lm-eval-word or stride-512; other sizes work too.",
            usual="llamacpp-512",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ReferenceOptions:
    """The reference model, and how it runs; the fields are those of ReferenceRequest."""

    panel: ClassVar = "Comparison with a reference model"
    against: Annotated[
        str | None,
        name_option(
            "MODEL", complete_model, "Reference model: measure KL divergence from it, on --text or the bundled text."
        ),
    ] = None
    against_dtype: Annotated[
        str | None,
        name_option("DTYPE", complete_dtype, "Compute dtype of the reference.", usual="--dtype"),
    ] = None
    against_backend: Annotated[
        str | None,
        name_option("BACKEND", complete_backend, "Backend of the reference.", usual="--backend"),
    ] = None
    against_batch_size: Annotated[
        int | None, integer_option(1, "Batch size of the reference.", usual="--batch-size")
    ] = None


@command(
    "eval",
    "gptfast eval tiny --tasks bundled-cloze --limit 20",
    "gptfast eval tiny-draft --against tiny",
    "gptfast eval model-Q4_K_M.gguf org/model-AWQ --against org/model",
    kind=WordsCommand,
)
def evaluate(
    context: typer.Context,
    models: ModelsArgument = None,
    *,
    model: ModelOption = None,
    asked: QuestionOptions,
    template: TemplateOptions,
    perplexity: PerplexityOptions,
    reference: ReferenceOptions,
    hardware: DeviceOptions,
    kv_dtype: KvDtypeOption = "auto",
    tp: TpOption = None,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Measure accuracy on tasks, perplexity of a text, or KL divergence from a reference model.

    Several models are compared with one reference, which reads the text once.

    Without --tasks, --text or --against, runs the bundled tasks. Other tasks are those of lm-evaluation-harness.
    Results go to stdout, everything else to stderr. Ctrl-C keeps the results so far; tasks resume from there when the
    command is repeated.
    """
    text = perplexity.text
    _check_together({"--protocol": perplexity.protocol}, text, "--text FILE")
    of_reference = {
        "--against-dtype": reference.against_dtype,
        "--against-backend": reference.against_backend,
        "--against-batch-size": reference.against_batch_size,
    }
    _check_together(of_reference, reference.against, "--against MODEL")
    group = context.with_resource(ranks(tp))
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.evals.comparison import ReferenceRequest
        from gptfast_cli.core.evals.perplexity import TextOptions
        from gptfast_cli.core.evals.protocols import DEFAULT_PROTOCOL
        from gptfast_cli.core.evals.tasks.requests import TaskOptions
        from gptfast_cli.core.jobs.eval import EvalRequest, run

        request = EvalRequest(
            settings=load_settings(),
            model=model_given(context, next(iter(models or ()), None), model),
            others=tuple((models or ())[1:]),
            runtime=RuntimeConfig(**asdict(hardware), **asdict(engine), kv_dtype=kv_dtype, group=group),
            tasks=TaskOptions(
                names=_names(asked.tasks),
                limit=asked.limit,
                n_shots=asked.num_fewshot,
                include_path=asked.include_path,
                chat=ChatOptions(asked.chat, template.system, template.chat_template),
                output_path=asked.output_path,
                batch_size=asked.batch_size,
                seed=asked.seed,
            ),
            text=None if text is None else TextOptions(text, perplexity.protocol or DEFAULT_PROTOCOL),
            against=None if reference.against is None else ReferenceRequest(*astuple(reference)),
        )
        evaluation = show(run(request), show_progress)
    if printing.json:
        from gptfast_cli.render.evaluation import KEYS
        from gptfast_cli.render.json import write_document

        write_document("gptfast.eval/1", evaluation, sys.stdout, KEYS)
    else:
        from gptfast_cli.render.evaluation import write_evaluation

        write_evaluation(evaluation, sys.stdout)
    if evaluation.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if evaluation.tasks is not None and (failures := evaluation.tasks.failures):
        raise GptFastError(
            f"{len(failures):,} questions failed; the first is question {failures[0].number} of {failures[0].task}: "
            f"{failures[0].reason}",
            "The results are of the other questions; --json lists all failures.",
        )


def _names(given: str | None) -> tuple[str, ...]:
    """The names in a list with commas, spaces, or both."""
    return () if given is None else tuple((given.replace(",", " ")).split())


def _check_together(given: dict[str, str | int | None], needed: object, option: str) -> None:
    """Raise UsageError for an option without the one that it requires."""
    for name, value in given.items():
        if value is not None and needed is None:
            raise UsageError(f"{name} requires {option.partition(' ')[0]}.", f"Add {option}, or leave out {name}.")
