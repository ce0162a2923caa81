"""`generate --prompts-file`: answer all rows of a prompts file; yields one record per row, returns the metrics."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from gptfast_cli.core.batch.output import Output, PriorRecord, line_of, open_output, reason_of, refusal, tokens_of
from gptfast_cli.core.batch.replicas import ReplicaPart, Replicas, answered
from gptfast_cli.core.batch.rows import BadRow, Row, model_identity, read_rows, row_identity
from gptfast_cli.core.batch.runner import BatchContext, BatchRunner
from gptfast_cli.core.bench.throughput import Metrics, SpeculationReport, speculation_report
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.device import AUTO
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import open_prompter
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.engine.model_defaults import ModelDefaults, model_defaults
from gptfast_cli.core.engine.options import DEFAULT_NEW_TOKENS, GenerationOptions
from gptfast_cli.core.engine.request import unmatched_stops
from gptfast_cli.core.engine.speculative.draft_length import DraftedTexts
from gptfast_cli.core.engine.speculative.drafting import open_draft
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Progress, Record
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.tokenizers import Tokenizer

DEFAULT_BATCH_SIZE: Final = 8
_ROW_DEFAULTS: Final = ("sampling", "max_new_tokens", "stop", "ignore_eos", "num_samples", "n_logprobs")
"""Options that a row may override, besides seed and system message."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A prompts file to answer.

    prompts:  JSON-lines file, one row per line
    options:  defaults of the rows; seed None: the seed recorded in `output`, or a random one
    output:   file of records, which a later run resumes; None: records are only yielded
    in_order: yield records in the order of the file; otherwise as they finish
    replicas: independent engines that share the rows; None: one engine, in this process
    part:     rows of this process, if it is a replica
    """

    prompts: Path
    settings: Settings
    options: GenerationOptions = GenerationOptions()
    output: Path | None = None
    in_order: bool = True
    model: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    replicas: Replicas | None = None
    part: ReplicaPart | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Row and token counts of a run, and its metrics.

    n_rows:          rows in the file
    n_done, n_found: rows with a record, in total and from earlier runs
    n_bad:           rows whose record is an error
    n_prompt_tokens: prompt tokens of the rows answered in this run; `n_tokens`: generated tokens
    seconds:         wall time of this run
    metrics:         None if nothing was decoded
    """

    n_rows: int
    n_done: int
    n_found: int
    n_bad: int
    n_prompt_tokens: int
    n_tokens: int
    seed: int
    seconds: float
    metrics: Metrics | None
    is_interrupted: bool
    speculation: SpeculationReport | None = None


def run(request: BatchRequest) -> Job[BatchResult]:
    """Answer the rows of a file; an interrupt ends the run early and keeps all finished records.

    A row that cannot be answered gets an error record and a note. Raises UsageError for invalid options or an output
    file of another run; NotFoundError and CorruptError for the prompts file and the model; DiskFullError.
    """
    started = time.monotonic()
    request.options.check()
    defaults = _defaults(request)
    notes = tuple(defaults.describe(request.options))
    options = defaults.apply(request.options)
    request = replace(request, options=replace(options, max_new_tokens=options.max_new_tokens or DEFAULT_NEW_TOKENS))
    group = request.runtime.group
    is_first = group.rank == 0  # the only rank that reads and writes files
    rows = read_rows(request.prompts, replace(request.options, seed=None), group)
    shared = _shared(request)
    if request.part is not None:
        lines = set(request.part.lines)
        rows = [row for row in rows if row.line in lines]
    identities = {row.line: row_identity(row, shared) for row in rows}
    is_interrupted = False
    with open_output(request.output if is_first else None, identities, in_order=request.in_order) as output:
        there: list[Any] = [[line, each.seed, each.is_bad] for line, each in output.found.items()]
        found = {line: PriorRecord(seed, is_bad) for line, seed, is_bad in group.broadcast(there)}
        sink = _RecordSink(request.prompts.name, output, identities, found)
        seed = group.broadcast(_seed(request, rows, found))
        try:
            yield from _work_through([row for row in rows if row.line not in found], request, sink, seed, notes)
        except KeyboardInterrupt:
            is_interrupted = True
            yield from output.unsaved()
    return BatchResult(
        n_rows=len(rows),
        n_done=sink.n_done,
        n_found=len(found),
        n_bad=sink.n_bad,
        n_prompt_tokens=sink.n_prompt_tokens,
        n_tokens=sink.n_tokens,
        seed=seed,
        seconds=time.monotonic() - started,
        metrics=None if sink.runner is None else sink.runner.metrics(),
        is_interrupted=is_interrupted,
        speculation=None if sink.runner is None else speculation_report(sink.runner.speculation),
    )


class _RecordSink:
    """Counts finished rows and passes their records to the output."""

    def __init__(
        self, prompts_name: str, output: Output, identities: Mapping[int, str], found: Mapping[int, PriorRecord]
    ) -> None:
        self.identities = identities
        self.n_done = len(found)
        self.n_bad = sum(each.is_bad for each in found.values())
        self.n_prompt_tokens = self.n_tokens = 0  # of the rows answered in this run
        self.runner: BatchRunner | None = None  # None until the model is loaded
        self._output = output
        self._prompts_name = prompts_name

    @property
    def progress(self) -> Progress:
        return Progress("generate", self.n_done, len(self.identities), "rows")

    def take(self, record: Record) -> Job[None]:
        """Count a record and yield what the output releases; yields a note for an error."""
        self.n_done += 1
        n_prompt_tokens, n_tokens = tokens_of(record)
        self.n_prompt_tokens += n_prompt_tokens
        self.n_tokens += n_tokens
        if (reason := reason_of(record)) is not None:
            self.n_bad += 1
            yield Note(f"{self._prompts_name}:{line_of(record)}: {reason}")
        yield from self._output.put(record)


def _defaults(request: BatchRequest) -> ModelDefaults:
    """The model's defaults, which the rows may override; none if every option was given."""
    if not request.options.unset:
        return ModelDefaults({}, {})
    return model_defaults(open_checkpoint(resolve(request.model, request.settings).path))


def _work_through(
    rows: Sequence[Row | BadRow], request: BatchRequest, sink: _RecordSink, seed: int, notes: Sequence[Note]
) -> Job[None]:
    """Record the bad rows, which need no model; then load the model and answer the others.

    notes: on the run's options
    """
    for row in rows:
        if isinstance(row, BadRow):
            yield from sink.take(refusal(row, row.reason, sink.identities[row.line]))
    good = [row for row in rows if isinstance(row, Row)]
    if not good:
        return
    if request.replicas is not None:
        yield from notes
        yield sink.progress
        yield from _take_all(answered([row.line for row in good], request.replicas, seed), sink)
        return
    options = request.options
    loaded = yield from load(request.model, request.settings, request.runtime)
    yield from notes
    loaded.limits(1, options.max_context)  # an invalid --max-context is an error of the run, not of a row
    with open_prompter(loaded, options.chat) as prompter:
        yield from prompter.notes()
        yield from (Note(sentence) for sentence in unmatched_stops(options.stop, loaded.tokenizer))
        yield from _stops_of_rows(good, request, loaded.tokenizer)
        context = BatchContext(loaded, prompter, options.max_context, options.compiling, request.settings, seed)
        n_slots = min(options.batch_size or DEFAULT_BATCH_SIZE, sum(row.options.num_samples for row in good))
        n_tokens = loaded.limits(1, options.max_context).max_context
        speculation = yield from open_draft(
            options.drafting,
            loaded,
            DraftedTexts(n_slots, n_tokens, options.sampling.temperature),
            settings=request.settings,
            runtime=request.runtime,
        )
        sink.runner = BatchRunner(good, context, sink.identities, n_slots=n_slots, speculation=speculation)
        yield sink.progress
        yield from _take_all(sink.runner.run(), sink)


def _stops_of_rows(rows: Sequence[Row], request: BatchRequest, tokenizer: Tokenizer | None) -> Iterator[Note]:
    """Notes on stop strings of rows that can never match; one per string, naming the first row that has it."""
    own = [row for row in rows if row.options.stop != request.options.stop]
    first_rows = {row.options.stop: row for row in reversed(own)}
    first_lines: dict[str, int] = {}
    for stops, row in sorted(first_rows.items(), key=lambda item: item[1].line):
        for sentence in unmatched_stops(stops, tokenizer, option="stop"):
            first_lines.setdefault(sentence, row.line)
    yield from (Note(f"{request.prompts.name}:{line}: {sentence}") for sentence, line in first_lines.items())


def _take_all(job: Job[None], sink: _RecordSink) -> Job[None]:
    """Pass the records of a job to the sink, and its other events on."""
    for event in job:
        if isinstance(event, Record):
            yield from sink.take(event)
            yield sink.progress
        else:
            yield event


def _seed(request: BatchRequest, rows: Sequence[Row | BadRow], found: Mapping[int, PriorRecord]) -> int:
    """The run's seed: of the replica's part, the requested one, that of existing records, or a random one."""
    drawing = {row.line for row in rows if isinstance(row, Row) and row.options.seed is None}
    begun = {record.seed for line, record in found.items() if line in drawing and record.seed is not None}
    if request.options.seed is not None and begun - {request.options.seed}:
        raise UsageError(
            f"{request.output}: was written with --seed {max(begun)}, not {request.options.seed}.",
            "Use that seed, omit --seed, or give another --output.",
        )
    if request.part is not None:
        return request.part.seed
    if request.options.seed is not None:
        return request.options.seed
    return max(begun) if begun else secrets.randbits(31)


def _shared(request: BatchRequest) -> str:
    """What all answers depend on, as JSON; without the seed, which each record contains."""
    fields = asdict(request.options)
    file = Path(request.options.chat.template or "").expanduser()
    dependencies = {
        "model": model_identity(resolve(request.model, request.settings).path, request.settings.home),
        "defaults": {name: fields[name] for name in _ROW_DEFAULTS} | {"seed": None, "system": None},
        "dtype": request.runtime.dtype,
        # no key without variables, as in records of earlier versions, whose runs can thus be resumed
        "chat": {name: value for name, value in fields["chat"].items() if value or name != "variables"},
        "template": file.read_text(errors="replace") if file.is_file() else None,
        "max_context": request.options.max_context,
    }
    if request.runtime.kv_dtype != AUTO:
        dependencies["kv_dtype"] = request.runtime.kv_dtype
    drafting = request.options.drafting
    if drafting is not None:  # sampled tokens depend on the draft; their distribution does not
        # keys as in records of earlier versions, whose runs can thus be resumed
        dependencies["draft"] = {
            "draft": drafting.draft,
            "depth": drafting.draft_length,
            "has_own_depth": drafting.has_own_draft_length,
        }
    return json.dumps(dependencies, sort_keys=True)
