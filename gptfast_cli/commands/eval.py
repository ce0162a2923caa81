"""`gptfast eval`: how well a model does on tasks."""

import sys

import typer

from gptfast_cli.commands.eval_options import (
    BatchSizeOption,
    ChatTemplateOption,
    FewShotOption,
    IncludePathOption,
    LimitOption,
    OutputPathOption,
    SeedOption,
    SystemOption,
    TaskChatOption,
    TasksOption,
)
from gptfast_cli.core.errors import ExitCode
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    ActivationsOption,
    BackendOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    ThreadsOption,
    model_given,
)
from gptfast_cli.render.show import progress_view, show


def evaluate(
    context: typer.Context,
    model_argument: ModelArgument = None,
    *,
    model: ModelOption = None,
    tasks: TasksOption = None,
    limit: LimitOption = None,
    num_fewshot: FewShotOption = None,
    include_path: IncludePathOption = None,
    chat: TaskChatOption = False,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    output_path: OutputPathOption = None,
    batch_size: BatchSizeOption = 8,
    seed: SeedOption = 1234,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = None,
    activations: ActivationsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how well a model does on tasks, the bundled ones or those of lm-evaluation-harness.

    Results go to stdout, all else to stderr. Ctrl-C keeps what has been answered, and the same command goes on from
    there.
    """
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.decode.building import Placing
        from gptfast_cli.core.decode.prompter import ChatOptions
        from gptfast_cli.core.jobs.eval import EvalRequest, run
        from gptfast_cli.core.measure.tasks.options import TaskOptions

        request = EvalRequest(
            settings=load_settings(),
            model=model_given(context, model_argument, model),
            placing=Placing(device, dtype, threads, backend, activations),
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
        )
        evaluation = show(run(request), show_progress)
    if json:
        from gptfast_cli.render.evaluation_document import document
        from gptfast_cli.render.json import write_document

        write_document("gptfast.eval/1", document(evaluation), sys.stdout)
    else:
        from gptfast_cli.render.evaluation_table import write_evaluation

        write_evaluation(evaluation, sys.stdout)
    if evaluation.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _names(given: str | None) -> tuple[str, ...]:
    """The names in a list with commas, spaces, or both."""
    return () if given is None else tuple((given.replace(",", " ")).split())
