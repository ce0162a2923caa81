"""`eval`: accuracy on tasks, perplexity of a text, and KL divergence of models from a reference."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from gptfast_cli.core.batch.rows import model_identity
from gptfast_cli.core.bench.environment import Environment, environment
from gptfast_cli.core.checkpoints.store import OTHER_HOME
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load, open_model
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.comparison import Comparisons, ReferenceRequest, common_text, compare, load_reference
from gptfast_cli.core.evals.held_out import measured_content, read_text, refuse_overlap
from gptfast_cli.core.evals.perplexity import Perplexity, TextOptions, measure_perplexity, protocol_text
from gptfast_cli.core.evals.protocols import ProtocolText
from gptfast_cli.core.evals.tasks.evaluate import evaluate
from gptfast_cli.core.evals.tasks.requests import TaskOptions
from gptfast_cli.core.evals.tasks.results import TaskResults
from gptfast_cli.core.evals.tasks.sources import TaskSet, open_tasks
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import why_not_writable
from gptfast_cli.core.settings import Settings

T = TypeVar("T", TaskResults, Perplexity, Comparisons)

_ANSWERS_DEPEND_ON: Final = ("device", "dtype", "backend", "activations", "kv_dtype")
"""Fields of RuntimeConfig."""


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to measure, and of which model.

    tasks:   names of tasks; none: the bundled tasks, unless `text` or `against` is set
    text:    text for the perplexity, and for the comparison in place of the bundled text
    against: the reference model
    others:  further models that are compared with it
    """

    settings: Settings
    model: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    tasks: TaskOptions = TaskOptions()
    text: TextOptions | None = None
    against: ReferenceRequest | None = None
    others: tuple[str, ...] = ()

    @property
    def wants_tasks(self) -> bool:
        """Whether tasks are to run."""
        return bool(self.tasks.names) or (self.text is None and self.against is None)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results; None for what was not requested, or was interrupted before it began."""

    environment: Environment
    model: str
    scheme: str
    n_params: int
    load_s: float
    tasks: TaskResults | None
    perplexity: Perplexity | None
    comparison: Comparisons | None
    is_interrupted: bool


def run(request: EvalRequest) -> Job[Evaluation]:
    """Load the models once and measure; an interrupt ends it early, with the results so far.

    Raises UsageError and NotFoundError for invalid options, and what loading raises, before any measurement.
    """
    for options in (request.tasks, request.text, request.against):
        if options is not None:
            options.check()
    if request.others and (request.against is None or request.tasks.names):
        raise UsageError("Several models are only compared with a reference.", "Add --against MODEL, without --tasks.")
    asked = yield from _asked(request)  # before loading, so that a wrong name fails fast
    loaded = yield from load(
        open_model(request.model, request.settings, with_padding=True), request.settings, request.runtime
    )
    text = None if request.text is None else _text(request.text, loaded)
    tasks = None if asked is None else _answers(request, asked, loaded)
    prediction = None if text is None else measure_perplexity(loaded, text)
    pairs = None if request.against is None else (yield from _pairs(request, request.against, loaded, text))
    answers, is_interrupted = yield from _in_turn(tasks, is_interrupted=False)
    perplexity, is_interrupted = yield from _in_turn(prediction, is_interrupted=is_interrupted)
    comparison, is_interrupted = yield from _in_turn(pairs, is_interrupted=is_interrupted)
    return Evaluation(
        environment=environment(
            loaded.model.device, loaded.model.dtype, loaded.model.backend, request.runtime.group.size
        ),
        model=loaded.name,
        scheme=loaded.checkpoint.scheme,
        n_params=loaded.checkpoint.n_params,
        load_s=loaded.seconds,
        tasks=answers,
        perplexity=perplexity,
        comparison=comparison,
        is_interrupted=is_interrupted,
    )


def _asked(request: EvalRequest) -> Job[TaskSet | None]:
    if not request.wants_tasks:
        return None
    yield Progress("tasks", 0, None, "requests")
    return open_tasks(request.tasks)


def _answers(request: EvalRequest, asked: TaskSet, loaded: LoadedModel) -> Job[TaskResults]:
    path = _memory_path(request, request.tasks, loaded)
    reason = why_not_writable(path.parent)
    if reason is not None:
        yield Note(f"{path.parent} cannot be written ({reason}), so a run that is stopped starts anew. {OTHER_HOME}")
    return (yield from evaluate(loaded, asked, request.tasks, None if reason else path, request.runtime.group))


def _text(options: TextOptions, loaded: LoadedModel) -> ProtocolText:
    """The text that is to be predicted, read by the protocol."""
    content = read_text(options.file)
    refuse_overlap(content, loaded.checkpoint.calibration, what=str(options.file))
    return protocol_text(content, options.protocol, loaded)


def _pairs(
    request: EvalRequest, against: ReferenceRequest, loaded: LoadedModel, text: ProtocolText | None
) -> Job[Job[Comparisons | None]]:
    """Load the other models and the reference; returns the comparison that is to be made."""
    measured = [loaded]
    for name in request.others:
        opened = open_model(name, request.settings, with_padding=True)
        measured.append((yield from load(opened, request.settings, request.runtime)))
    reference = yield from load_reference(measured, against, request.settings)
    if request.text is None:
        content, what = measured_content(None), "The bundled held-out text"
    else:
        content, what = read_text(request.text.file), str(request.text.file)
    for reader in (*measured, reference):
        refuse_overlap(content, reader.checkpoint.calibration, what=what)
    batch_size = request.tasks.batch_size
    batch_sizes = batch_size, against.batch_size or batch_size
    return compare(measured, reference, common_text([*measured, reference], text), batch_sizes)


def _in_turn(part: Job[T | None] | None, *, is_interrupted: bool) -> Job[tuple[T | None, bool]]:
    """The result of a part, and whether the run is interrupted, after which no further part begins."""
    if part is None or is_interrupted:
        return None, is_interrupted
    found = yield from part
    return found, found is None or found.is_partial


def _memory_path(request: EvalRequest, options: TaskOptions, loaded: LoadedModel) -> Path:
    """File of the answers so far, named by a hash of the model, its runtime and the tasks."""
    runtime = {name: getattr(request.runtime, name) for name in _ANSWERS_DEPEND_ON}
    tasks = asdict(options) | {"include_path": None if options.include_path is None else str(options.include_path)}
    for name in ("limit", "output_path"):  # more questions, or another place for results, ask nothing else
        del tasks[name]
    content = f"{model_identity(loaded.path, request.settings.home)} {json.dumps([runtime, tasks], sort_keys=True)}"
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return request.settings.home / "answers" / f"{name}.jsonl"
