"""The options of `gptfast eval` alone, in the panels of its help."""

from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.options import complete_file, complete_folder

_TASKS = "Tasks"

_BUNDLED = ("bundled", "bundled-choice", "bundled-cloze", "bundled-sums")


def _complete_task() -> list[str]:
    return list(_BUNDLED)


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
    int, typer.Option("--batch-size", metavar="N", rich_help_panel=_TASKS, help="Answers generated side by side.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", rich_help_panel=_TASKS, help="Of examples and sampled answers.")
]
