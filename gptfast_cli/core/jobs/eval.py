"""`eval`: how well a model does on tasks."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gptfast_cli.core.batch.identity import model_identity
from gptfast_cli.core.decode.building import Placing
from gptfast_cli.core.decode.loading import LoadedModel, load
from gptfast_cli.core.events import Job, Progress
from gptfast_cli.core.measure.environment import Environment, environment
from gptfast_cli.core.measure.tasks.asking import ask
from gptfast_cli.core.measure.tasks.options import TaskOptions
from gptfast_cli.core.measure.tasks.results import TaskResults
from gptfast_cli.core.measure.tasks.sources import open_tasks
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to measure of which model; with nothing asked for, it is the bundled tasks."""

    settings: Settings
    model: str | None = None
    placing: Placing = Placing()
    tasks: TaskOptions | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured; None where it was not asked for, or an interrupt came first."""

    environment: Environment
    model: str
    scheme: str
    n_params: int
    load_s: float
    tasks: TaskResults | None
    is_interrupted: bool


def run(request: EvalRequest) -> Job[Evaluation]:
    """Load the model once and measure what was asked for; an interrupt ends it early, with what is there.

    Raises what loading raises, and what the parts do: UsageError and NotFoundError for what cannot be meant.
    """
    options = request.tasks or TaskOptions()
    options.check()
    yield Progress("tasks", 0, None, "requests")
    tasks = open_tasks(options)  # before the model: a wrong name is told at once
    loaded = yield from load(request.model, request.settings, request.placing)
    results = yield from ask(loaded, tasks, options, _memory_path(request, options, loaded))
    return Evaluation(
        environment=environment(loaded.model.device, loaded.model.dtype),
        model=loaded.name,
        scheme=loaded.checkpoint.scheme,
        n_params=loaded.checkpoint.n_params,
        load_s=loaded.seconds,
        tasks=results,
        is_interrupted=results.is_partial,
    )


def _memory_path(request: EvalRequest, options: TaskOptions, loaded: LoadedModel) -> Path:
    """Where the answers of a run are kept until it is over: of this model, run so, for these tasks."""
    what = {"placing": asdict(request.placing), "tasks": asdict(options)}
    for name in ("limit", "output_path"):  # more questions, or another place for results, ask nothing else
        del what["tasks"][name]
    content = f"{model_identity(loaded.path)} {json.dumps(what, sort_keys=True, default=str)}"
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return request.settings.home / "answers" / f"{name}.jsonl"
