"""Which tasks, and how they are put to a model."""

from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.decode.prompter import ChatOptions
from gptfast_cli.core.decode.ranges import check_at_least
from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What to ask.

    names:        tasks, groups of them, or patterns such as mmlu_*; none stands for all bundled ones
    limit:        questions of each task, or below 1 their share; None is all
    n_shots:      solved examples before each question; None is what the task says
    include_path: a folder of further tasks, in the harness's YAML
    chat:         whether questions are put as messages; a task's own text is plain, so None is not
    output_path:  a folder for the results and every sample, as the harness lays them out
    batch_size:   answers generated side by side
    seed:         of sampled answers, and of examples that are drawn
    """

    names: tuple[str, ...] = ()
    limit: float | None = None
    n_shots: int | None = None
    include_path: Path | None = None
    chat: ChatOptions = ChatOptions(chat=False)
    output_path: Path | None = None
    batch_size: int = 8
    seed: int = 1234

    def check(self) -> None:
        """Raise UsageError for whatever is out of its range."""
        check_at_least(1, {"--batch-size": self.batch_size})
        check_at_least(0, {"--num-fewshot": self.n_shots})
        if self.chat.template is not None and not self.chat.chat:
            raise UsageError("--chat-template needs a chat.", "Add --chat.")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit % 1)):
            raise UsageError(
                f"--limit {self.limit:g} is no number of questions.", "Give 100, or 0.1 for a tenth of each task."
            )
