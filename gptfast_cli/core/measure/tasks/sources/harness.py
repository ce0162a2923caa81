"""The tasks of lm-evaluation-harness, and such as are written for it in YAML."""

from dataclasses import dataclass

from lm_eval.tasks.manager import TaskDict

from gptfast_cli.core.decode.prompter import Prompter
from gptfast_cli.core.measure.tasks.answering import Answering
from gptfast_cli.core.measure.tasks.harness.exam import HarnessExam
from gptfast_cli.core.measure.tasks.harness.language_model import HarnessModel
from gptfast_cli.core.measure.tasks.harness.loading import load_tasks
from gptfast_cli.core.measure.tasks.options import TaskOptions
from gptfast_cli.core.measure.tasks.sources import Exam, TaskSet


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """See TaskSet."""

    loaded: TaskDict
    options: TaskOptions

    def exam(self, answering: Answering, prompter: Prompter | None) -> Exam:
        """See TaskSet."""
        return HarnessExam(self.loaded, HarnessModel(answering, prompter), self.options)


class Harness:
    """See Source; it needs the `eval` extra."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """See Source; raises what `load_tasks` raises."""
        return HarnessTasks(load_tasks(options), options)


PLUG = Harness()
