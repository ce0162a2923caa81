"""`gptfast eval`: accuracy on tasks, perplexity of a text, and KL divergence from another model."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import LARGEST_SEED, Integer, Number
from gptfast_cli.options import (
    ChatTemplateOption,
    DeviceOptions,
    EngineOptions,
    KvDtypeOption,
    ModelArgument,
    ModelOption,
    OutputOptions,
    SystemOption,
    TpOption,
    complete_backend,
    complete_dtype,
    complete_file,
    complete_folder,
    complete_model,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import GptFastCommand, command

_TASKS = "Tasks"
_TEXT = "Perplexity"
_AGAINST = "Comparison with a reference model"
_BUNDLED = ("bundled", "bundled-choice", "bundled-cloze", "bundled-sums")
_TAKES_WORDS: Final = "--tasks"


def _complete_task() -> list[str]:
    return list(_BUNDLED)


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


@command(
    "eval",
    "gptfast eval tiny --tasks bundled-cloze --limit 20",
    "gptfast eval tiny-draft --against tiny",
    "gptfast eval tiny --tasks bundled-sums bundled-choice --json",
    kind=WordsCommand,
)
def evaluate(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAME...",
            autocompletion=_complete_task,
            show_default="the bundled ones",
            rich_help_panel=_TASKS,
            help="Tasks, groups or patterns, separated by spaces or commas.",
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            parser=Number(is_closed=False),
            metavar="N",
            show_default="all",
            rich_help_panel=_TASKS,
            help="Maximum number of questions of each task, or their share if below 1.",
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            parser=Integer(),
            metavar="N",
            show_default="the task's",
            rich_help_panel=_TASKS,
            help="Number of solved examples before each question.",
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_folder,
            rich_help_panel=_TASKS,
            help="Folder of further tasks, as YAML of lm-evaluation-harness.",
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_folder,
            rich_help_panel=_TASKS,
            help="Folder for results and samples, in the layout of lm-evaluation-harness.",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            parser=Integer(1),
            metavar="N",
            rich_help_panel=_TASKS,
            help="Batch size: sequences evaluated together.",
        ),
    ] = 8,
    seed: Annotated[
        int,
        typer.Option(
            parser=Integer(0, LARGEST_SEED),
            metavar="N",
            rich_help_panel=_TASKS,
            help="Random seed of few-shot examples and sampled answers.",
        ),
    ] = 1234,
    chat: Annotated[
        bool,
        typer.Option("--chat/--no-chat", rich_help_panel=_TASKS, help="Format questions with the chat template."),
    ] = False,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            autocompletion=complete_file,
            rich_help_panel=_TEXT,
            help="Measure the perplexity of this text.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="PROTOCOL",
            autocompletion=_complete_protocol,
            show_default="llamacpp-512",
            rich_help_panel=_TEXT,
            help="Windows of the text: gptq-2048, llamacpp-512, lm-eval-word or stride-512; other sizes work too.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            autocompletion=complete_model,
            rich_help_panel=_AGAINST,
            help="Reference model: measure KL divergence from it, on --text or the bundled text.",
        ),
    ] = None,
    against_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            autocompletion=complete_dtype,
            show_default="--dtype",
            rich_help_panel=_AGAINST,
            help="Compute dtype of the reference.",
        ),
    ] = None,
    against_backend: Annotated[
        str | None,
        typer.Option(
            metavar="BACKEND",
            autocompletion=complete_backend,
            show_default="--backend",
            rich_help_panel=_AGAINST,
            help="Backend of the reference.",
        ),
    ] = None,
    against_batch_size: Annotated[
        int | None,
        typer.Option(
            parser=Integer(1),
            metavar="N",
            show_default="--batch-size",
            rich_help_panel=_AGAINST,
            help="Batch size of the reference.",
        ),
    ] = None,
    hardware: DeviceOptions,
    kv_dtype: KvDtypeOption = "auto",
    tp: TpOption = None,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Measure accuracy on tasks, perplexity of a text, or KL divergence from a reference model.

    Without --tasks, --text or --against, runs the bundled tasks. Other tasks are those of lm-evaluation-harness.
    Results go to stdout, everything else to stderr. Ctrl-C keeps the results so far; tasks resume from there when the
    command is repeated.
    """
    _check_together({"--protocol": protocol}, text, "--text FILE")
    _check_together(
        {
            "--against-dtype": against_dtype,
            "--against-backend": against_backend,
            "--against-batch-size": against_batch_size,
        },
        against,
        "--against MODEL",
    )
    group = context.with_resource(ranks(tp))
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.engine.build import RuntimeConfig
        from gptfast_cli.core.engine.chat import ChatOptions
        from gptfast_cli.core.evals.comparison import AgainstOptions
        from gptfast_cli.core.evals.perplexity import TextOptions
        from gptfast_cli.core.evals.protocols import DEFAULT_PROTOCOL
        from gptfast_cli.core.evals.tasks.requests import TaskOptions
        from gptfast_cli.core.jobs.eval import EvalRequest, run

        request = EvalRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            runtime=RuntimeConfig(
                hardware.device,
                hardware.dtype,
                hardware.threads,
                engine.backend,
                engine.activations,
                kv_dtype=kv_dtype,
                group=group,
            ),
            tasks=TaskOptions(
                names=_names(tasks),
                limit=limit,
                n_shots=num_fewshot,
                include_path=include_path,
                chat=ChatOptions(chat, system, chat_template),
                output_path=output_path,
                batch_size=batch_size,
                seed=seed,
            ),
            text=None if text is None else TextOptions(text, protocol or DEFAULT_PROTOCOL),
            against=None
            if against is None
            else AgainstOptions(against, against_dtype, against_backend, against_batch_size),
        )
        evaluation = show(run(request), show_progress)
    if printing.json:
        from gptfast_cli.render.evaluation import document
        from gptfast_cli.render.json import write_document

        write_document("gptfast.eval/1", document(evaluation), sys.stdout)
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
