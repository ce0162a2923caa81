"""The options of `gptfast eval` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.numbers import LARGEST_SEED, Integer, Number
from gptfast_cli.options import (
    complete_backend,
    complete_dtype,
    complete_file,
    complete_folder,
    complete_model,
)

_TASKS = "Tasks"
_TEXT = "Text"
_AGAINST = "Against another model"

_BUNDLED = ("bundled", "bundled-choice", "bundled-cloze", "bundled-sums")


def _complete_task() -> list[str]:
    return list(_BUNDLED)


def _complete_protocol() -> list[str]:
    from gptfast_cli.core.evals.protocols import usual_protocols

    return usual_protocols()


TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="NAME...",
        autocompletion=_complete_task,
        show_default="the bundled ones",
        rich_help_panel=_TASKS,
        help="Tasks, groups or patterns, with spaces or commas between them.",
    ),
]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit",
        parser=Number(is_closed=False),
        metavar="N",
        show_default="all",
        rich_help_panel=_TASKS,
        help="Questions of each task, or below 1 their share.",
    ),
]
FewShotOption = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot",
        parser=Integer(),
        metavar="N",
        show_default="the task's",
        rich_help_panel=_TASKS,
        help="Solved examples before each question.",
    ),
]
IncludePathOption = Annotated[
    Path | None,
    typer.Option(
        "--include-path",
        metavar="FOLDER",
        autocompletion=complete_folder,
        rich_help_panel=_TASKS,
        help="A folder of further tasks, in the YAML of lm-evaluation-harness.",
    ),
]
TaskChatOption = Annotated[
    bool,
    typer.Option(
        "--chat/--no-chat", rich_help_panel=_TASKS, help="Put questions as messages, by the model's chat template."
    ),
]
SystemOption = Annotated[
    str | None, typer.Option(metavar="TEXT", rich_help_panel=_TASKS, help="What stands before all questions.")
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=complete_file,
        show_default="the model's",
        rich_help_panel=_TASKS,
        help="Another template of the model, or a file.",
    ),
]
OutputPathOption = Annotated[
    Path | None,
    typer.Option(
        "--output-path",
        metavar="FOLDER",
        autocompletion=complete_folder,
        rich_help_panel=_TASKS,
        help="Write results and every sample there, as the harness lays them out.",
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        parser=Integer(1),
        metavar="N",
        rich_help_panel=_TASKS,
        help="Answers, and with --against passages, side by side.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        parser=Integer(0, LARGEST_SEED),
        metavar="N",
        rich_help_panel=_TASKS,
        help="Of examples and sampled answers.",
    ),
]
TextOption = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        autocompletion=complete_file,
        rich_help_panel=_TEXT,
        help="Measure the perplexity of this text.",
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="PROTOCOL",
        autocompletion=_complete_protocol,
        show_default="llamacpp-512",
        rich_help_panel=_TEXT,
        help="How the text is cut: gptq-2048, llamacpp-512, lm-eval-word, stride-512, or of another size.",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        autocompletion=complete_model,
        rich_help_panel=_AGAINST,
        help="A reference: measure how far the model is from it, on the bundled text or on --text.",
    ),
]
AgainstDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--against-dtype",
        metavar="DTYPE",
        autocompletion=complete_dtype,
        show_default="as --dtype",
        rich_help_panel=_AGAINST,
        help="In which the reference computes.",
    ),
]
AgainstBackendOption = Annotated[
    str | None,
    typer.Option(
        "--against-backend",
        metavar="BACKEND",
        autocompletion=complete_backend,
        show_default="as --backend",
        rich_help_panel=_AGAINST,
        help="On which the reference runs.",
    ),
]
AgainstBatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--against-batch-size",
        parser=Integer(1),
        metavar="N",
        show_default="as --batch-size",
        rich_help_panel=_AGAINST,
        help="Passages that the reference reads side by side.",
    ),
]
