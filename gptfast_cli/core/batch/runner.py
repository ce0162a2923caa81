"""BatchRunner rows of a file of prompts: as many at once as there is room for, each failing alone."""

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

_INDEX_BITS = 32  # of a stream's number: the row; the bits above them tell the samples of a row apart


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all rows share; `seed` is for rows without their own."""

    loaded: LoadedModel
    prompter: Prompter
    max_context: int | None  # None is the model's own
    compiling: Compiling
    settings: Settings
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in progress, one transcript per sample."""

    row: Row
    seed: int
    transcripts: tuple[Transcript, ...]

    @property
    def is_over(self) -> bool:
        """Whether every sample is finished."""
        return all(transcript.request.finish_reason is not None for transcript in self.transcripts)

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt, which all samples share."""
        return len(self.transcripts[0].request.prompt)

    def fields(self) -> dict[str, object]:
        """Fields of the record: those of the sample, or `samples` if there are several."""
        samples = [_sample_fields(transcript) for transcript in self.transcripts]
        answer = samples[0] if len(samples) == 1 else {"samples": samples}
        return {**answer, "prompt_tokens": self.n_prompt_tokens, "seed": self.seed}


def begin(row: Row, context: BatchContext) -> Answer:
    """The answer to a row, nothing of it decoded yet.

    Raises UsageError or CorruptError if the row cannot be put to this model.
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
    return Answer(row, seed, tuple(Transcript(sequence, loaded.tokenizer, options.stop) for sequence in sequences))


def _stream(row: Row, sample: int) -> int:
    """A row with its own seed is sampled like a single prompt with that seed, independent of its line."""
    return row.index + (sample << _INDEX_BITS) if row.options.seed is None else sample


def _prompt_ids(row: Row, context: BatchContext) -> tuple[int, ...]:
    prompter = context.prompter
    match row.prompt:
        case str(text) if row.system is None:
            return prompter.encode(prompter.text(text))
        case str(text):
            return prompter.encode(prompter.render([*_opening(row, prompter), {"role": "user", "content": text}]))
        case Messages(messages) if row.prompt.has_system_message:
            return prompter.encode(prompter.render(messages))
        case Messages(messages):
            return prompter.encode(prompter.render([*_opening(row, prompter), *messages]))
        case ids:
            context.loaded.check_ids(ids)
            return ids


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
    if sequence.n_logprobs is not None:
        fields["logprobs"] = [asdict(logprobs) for logprobs in sequence.logprobs]
    return fields


class BatchRunner:
    """Decodes the rows of a file of prompts, the samples of a row as requests of their own."""

    def __init__(
        self,
        rows: Rows[Row],
        context: BatchContext,
        identities: Mapping[int, str],
        *,
        n_slots: int,
        speculation: Speculation | None = None,
    ) -> None:
        """`n_slots`: maximum number of rows decoded together; `speculation` is prepared for as many."""
        self._rows = rows
        self._setting = context
        self._timings = Timings()
        self.speculation = speculation
        self._runner = Runner(context.loaded.model, n_slots)
        self._engine = Engine(self._runner, speculation, isolates_failures=True)
        self._identities = identities
        self._answers: dict[int, Answer] = {}  # under way, by the index of their rows
        self._transcripts: dict[Request, Transcript] = {}  # of the answers that are under way
        self._refused: list[Record] = []  # rows without an answer, to be yielded next

    def run(self) -> Job[None]:
        """Answer all rows; yields the record of each as soon as it is finished."""
        context = self._setting
        # no row has been read for its length yet: each gets room for the whole context
        n_tokens = context.loaded.limits(1, context.max_context).max_context
        self._timings.compile_seconds = yield from compile_steps(
            self._runner, context.compiling, n_tokens=n_tokens, settings=context.settings
        )
        for step in self._engine.generate(self._requests()):
            yield from self._refusals()
            output = yield from _without_progress(step)
            self._timings.add(output)
            for request in output.advanced:
                self._transcripts[request].read()  # which may end it
            for request in output.advanced:
                yield from self._conclude(request)
        yield from self._refusals()

    def metrics(self) -> Metrics:
        """The speed so far."""
        loaded = self._setting.loaded
        peak = peak_memory_bytes(loaded.model.device)
        return self._timings.metrics(load_seconds=loaded.seconds, peak_memory_bytes=peak)

    def _requests(self) -> Iterator[Request]:
        """The samples of all rows, each row tokenized as its first sample is taken; some rows are refused then."""
        for row in self._rows:
            try:
                answer = begin(row, self._setting)
            except (UsageError, CorruptError) as error:
                self._refused.append(refusal(row, error.message, self._identities[row.line]))
                continue
            self._answers[row.index] = answer
            self._transcripts |= {transcript.request: transcript for transcript in answer.transcripts}
            for transcript in answer.transcripts:
                if transcript.request.finish_reason is None:  # no other sample has failed
                    yield transcript.request

    def _refusals(self) -> Job[None]:
        refused, self._refused = self._refused, []
        yield from refused

    def _conclude(self, request: Request) -> Job[None]:
        """The record of the row of a sample, once all its samples are finished or this one has failed."""
        answer = self._answers.get(request.id)
        if answer is None:  # it is recorded already
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
    """A job whose own progress is too small to be shown: here it is rows that count."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
        if not isinstance(event, Progress):
            yield event
