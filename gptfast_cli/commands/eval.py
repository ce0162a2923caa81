"""`gptfast eval`: how well a model does on tasks, how well it predicts a text, and how far it is from another."""

import sys

import typer

from gptfast_cli.commands.eval_options import (
    AgainstBackendOption,
    AgainstBatchSizeOption,
    AgainstDtypeOption,
    AgainstOption,
    BatchSizeOption,
    ChatTemplateOption,
    FewShotOption,
    IncludePathOption,
    LimitOption,
    OutputPathOption,
    ProtocolOption,
    SeedOption,
    SystemOption,
    TaskChatOption,
    TasksOption,
    TextOption,
)
from gptfast_cli.commands.ranks import ranks
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError
from gptfast_cli.core.settings import load_settings
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
    TpOption,
    model_given,
)
from gptfast_cli.render.progress import progress_view, show


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
    text: TextOption = None,
    protocol: ProtocolOption = None,
    against: AgainstOption = None,
    against_dtype: AgainstDtypeOption = None,
    against_backend: AgainstBackendOption = None,
    against_batch_size: AgainstBatchSizeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    kv_dtype: KvDtypeOption = "auto",
    threads: ThreadsOption = None,
    tp: TpOption = None,
    backend: BackendOption = None,
    activations: ActivationsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how well a model does on tasks, how well it predicts a text, and how far it is from another model.

    Tasks are the bundled ones, also where nothing is asked for, or those of lm-evaluation-harness. Results go to
    stdout, all else to stderr. Ctrl-C keeps what is known by then, and tasks go on from there with the same command.
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
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
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
            runtime=RuntimeConfig(device, dtype, threads, backend, activations, kv_dtype=kv_dtype, group=group),
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
    if json:
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
            f"{len(failures):,} questions could not be answered, the first of them question {failures[0].number} of "
            f"{failures[0].task}: {failures[0].reason}",
            "The numbers are those of the others; --json lists every one.",
        )


def _names(given: str | None) -> tuple[str, ...]:
    """The names in a list with commas, spaces, or both."""
    return () if given is None else tuple((given.replace(",", " ")).split())


def _check_together(given: dict[str, str | int | None], needed: object, option: str) -> None:
    """Raise UsageError where an option was given without the one that it belongs to."""
    for name, value in given.items():
        if value is not None and needed is None:
            raise UsageError(f"{name} goes with {option}.", f"Add {option}, or leave out {name}.")
