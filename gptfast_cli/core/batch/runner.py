"""Decode the rows of a prompts file by continuous batching; a failure affects its row only."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass

from gptfast_cli.core.batch.output import record_of, refusal
from gptfast_cli.core.batch.rows import Messages, Row
from gptfast_cli.core.bench.throughput import Metrics, Timings
from gptfast_cli.core.device import peak_memory_bytes
from gptfast_cli.core.engine.chat import Message, Prompter
from gptfast_cli.core.engine.compiled import Compiling, compile_steps
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.request import Request, Transcript
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Job, Progress, Record, T
from gptfast_cli.core.settings import Settings

_INDEX_BITS = 32  # random stream id: the low bits hold the row, the high bits the sample


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all rows share; `seed` applies to rows without one."""

    loaded: LoadedModel
    prompter: Prompter
    max_context: int | None  # None: the model's maximum
    compiling: Compiling
    settings: Settings
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a row while it is decoded: one transcript per sample."""

    row: Row
    seed: int
    transcripts: tuple[Transcript, ...]

    @property
    def is_over(self) -> bool:
        """Whether every sample is finished."""
        return all(transcript.request.finish_reason is not None for transcript in self.transcripts)

    @property
    def n_prompt_tokens(self) -> int:
        """Number of prompt tokens; all samples share the prompt."""
        return len(self.transcripts[0].request.prompt)

    def fields(self) -> dict[str, object]:
        """Fields of the record: those of a single sample, or a list `samples`."""
        samples = [_sample_fields(transcript) for transcript in self.transcripts]
        answer = samples[0] if len(samples) == 1 else {"samples": samples}
        return {**answer, "prompt_tokens": self.n_prompt_tokens, "seed": self.seed}


def begin(row: Row, context: BatchContext) -> Answer:
    """Tokenize a row and create its requests.

    Raises UsageError or CorruptError for a row that this model cannot answer.
    """
    loaded, options = context.loaded, row.options
    limits = loaded.limits(
        options.max_new_tokens,
        context.max_context,
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        turn_end_ids=frozenset() if isinstance(row.prompt, tuple) else context.prompter.turn_end_ids,
    )
    prompt = _prompt_ids(row, context)
    limits.check_prompt(len(prompt))
    seed = context.seed if options.seed is None else options.seed
    samplers = [Sampler(options.sampling, seed, _stream(row, sample)) for sample in range(options.num_samples)]
    sequences = [Request(row.index, prompt, sampler, limits, options.n_logprobs) for sampler in samplers]
    is_chat = not isinstance(row.prompt, tuple)
    transcripts = (
        Transcript(
            sequence,
            loaded.tokenizer,
            options.stop,
            context.prompter.reasoning_parser(prompt) if is_chat else None,
        )
        for sequence in sequences
    )
    return Answer(row, seed, tuple(transcripts))


def _stream(row: Row, sample: int) -> int:
    """Random stream of a sample; a row with its own seed gets the stream of a single prompt with that seed."""
    return row.index + (sample << _INDEX_BITS) if row.options.seed is None else sample


def _prompt_ids(row: Row, context: BatchContext) -> tuple[int, ...]:
    prompter = context.prompter
    match row.prompt:
        case str(text) if row.system is None and not row.variables:
            return prompter.encode(prompter.text(text))
        case str(text):
            messages: list[Message] = [*_opening(row, prompter), {"role": "user", "content": text}]
        case Messages(given) if row.prompt.has_system_message:
            messages = [*given]
        case Messages(given):
            messages = [*_opening(row, prompter), *given]
        case ids:
            context.loaded.check_ids(ids)
            return ids
    return prompter.encode(prompter.render(messages, variables=row.variables))


def _opening(row: Row, prompter: Prompter) -> list[Message]:
    system = row.system
    return prompter.opening() if system is None else [{"role": "system", "content": system}]


def _sample_fields(transcript: Transcript) -> dict[str, object]:
    sequence = transcript.request
    fields: dict[str, object] = {
        "text": transcript.text,
        "token_ids": sequence.generated,
        "finish_reason": sequence.finish_reason,
    }
    if transcript.reasoning is not None:
        fields["content"] = transcript.reasoning.content
        if transcript.reasoning.reasoning is not None:
            fields["reasoning"] = transcript.reasoning.reasoning
    if sequence.n_logprobs is not None:
        fields["logprobs"] = [asdict(logprobs) for logprobs in sequence.logprobs]
    return fields


class BatchRunner:
    """Decodes the rows of a prompts file; each sample of a row is a request."""

    def __init__(
        self,
        rows: Rows[Row],
        context: BatchContext,
        identities: Mapping[int, str],
        *,
        n_slots: int,
        speculation: Speculation | None = None,
    ) -> None:
        """`n_slots`: maximum number of requests decoded together; `speculation` is prepared for as many."""
        self._rows = rows
        self._setting = context
        self._timings = Timings()
        self.speculation = speculation
        self._runner = Runner(context.loaded.model, n_slots)
        self._engine = Engine(self._runner, speculation, isolates_failures=True)
        self._identities = identities
        self._answers: dict[int, Answer] = {}  # in progress, by row index
        self._transcripts: dict[Request, Transcript] = {}  # of the answers in progress
        self._refused: list[Record] = []  # error records to be yielded next

    def run(self) -> Job[None]:
        """Answer all rows; yields each record as soon as it is finished."""
        context = self._setting
        # prompt lengths are not known yet: plan for the whole context
        n_tokens = context.loaded.limits(1, context.max_context).max_context
        self._timings.compile_seconds = yield from compile_steps(
            self._runner, context.compiling, n_tokens=n_tokens, settings=context.settings
        )
        for step in self._engine.generate(self._requests()):
            yield from self._refusals()
            output = yield from _without_progress(step)
            self._timings.add(output)
            for request in output.advanced:
                self._transcripts[request].read()  # may find a stop string
            for request in output.advanced:
                yield from self._conclude(request)
        yield from self._refusals()

    def metrics(self) -> Metrics:
        loaded = self._setting.loaded
        peak = peak_memory_bytes(loaded.model.device)
        return self._timings.metrics(load_seconds=loaded.seconds, peak_memory_bytes=peak)

    def _requests(self) -> Iterator[Request]:
        """Requests of all rows; a row is tokenized, and possibly refused, when its first request is taken."""
        for row in self._rows:
            try:
                answer = begin(row, self._setting)
            except (UsageError, CorruptError) as error:
                self._refused.append(refusal(row, error.message, self._identities[row.line]))
                continue
            self._answers[row.index] = answer
            self._transcripts |= {transcript.request: transcript for transcript in answer.transcripts}
            for transcript in answer.transcripts:
                if transcript.request.finish_reason is None:  # not aborted because another sample failed
                    yield transcript.request

    def _refusals(self) -> Job[None]:
        refused, self._refused = self._refused, []
        yield from refused

    def _conclude(self, request: Request) -> Job[None]:
        """Yield the record of a request's row once all its samples are finished, or this one has failed."""
        answer = self._answers.get(request.id)
        if answer is None:  # already recorded
            return
        if request.failure is not None:
            for transcript in answer.transcripts:
                self._engine.abort(transcript.request)
            yield refusal(answer.row, request.failure.message, self._identities[answer.row.line])
        elif answer.is_over:
            yield record_of(answer.row, answer.fields(), self._identities[answer.row.line])
        else:
            return
        del self._answers[request.id]
        for transcript in answer.transcripts:
            del self._transcripts[transcript.request]


def _without_progress(job: Job[T]) -> Job[T]:
    """The job without its progress events: progress is shown in rows."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
        if not isinstance(event, Progress):
            yield event
