"""The tasks of lm-evaluation-harness, and such as are written for it in YAML."""

from dataclasses import dataclass

from lm_eval.tasks.manager import TaskDict

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.evals.tasks.harness import HarnessTaskRun, load_tasks
from gptfast_cli.core.evals.tasks.harness_model import HarnessModel
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import TaskOptions
from gptfast_cli.core.evals.tasks.sources import TaskRun, TaskSet


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """See TaskSet."""

    loaded: TaskDict
    options: TaskOptions

    def task_run(self, request_runner: RequestRunner, prompter: Prompter | None) -> TaskRun:
        return HarnessTaskRun(self.loaded, HarnessModel(request_runner, prompter), self.options)


class Harness:
    """See Source; it needs the `eval` extra."""

    def tasks(self, options: TaskOptions) -> TaskSet:
        """See Source; raises what `load_tasks` raises."""
        return HarnessTasks(load_tasks(options), options)


PLUG = Harness()
