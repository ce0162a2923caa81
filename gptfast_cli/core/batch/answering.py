"""Answering rows of a file of prompts: as many at once as there is room for, each failing alone."""

from collections import deque
from collections.abc import Mapping
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
from gptfast_cli.core.events import Job, Progress, T
from gptfast_cli.core.settings import Settings

_INDEX_BITS = 32  # of a stream's number: the row; the bits above them tell the samples of a row apart


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all rows share; `seed` is for those that have none of their own."""

    loaded: LoadedModel
    prompter: Prompter
    max_context: int | None  # None is the model's own
    compiling: Compiling
    settings: Settings
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer under way, one transcript for each sample."""

    row: Row
    seed: int
    transcripts: tuple[Transcript, ...]

    @property
    def is_over(self) -> bool:
        """Whether every sample is finished."""
        return all(transcript.sequence.finish_reason is not None for transcript in self.transcripts)

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt, which all samples share."""
        return len(self.transcripts[0].sequence.prompt)

    def fields(self) -> dict[str, object]:
        """What there is to tell: the fields of the sample, or `samples` where there are several."""
        samples = [_sample_fields(transcript) for transcript in self.transcripts]
        told = samples[0] if len(samples) == 1 else {"samples": samples}
        return {**told, "prompt_tokens": self.n_prompt_tokens, "seed": self.seed}


def begin(row: Row, setting: BatchContext) -> Answer:
    """The answer to a row, nothing of it decoded yet.

    Raises UsageError or CorruptError where the row cannot be put to this model.
    """
    loaded, options = setting.loaded, row.options
    limits = loaded.limits(
        options.max_new_tokens,
        setting.max_context,
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        turn_end_ids=frozenset() if isinstance(row.prompt, tuple) else setting.prompter.turn_end_ids,
    )
    prompt = _prompt_ids(row, setting)
    limits.check_prompt(len(prompt))
    seed = setting.seed if options.seed is None else options.seed
    samplers = [Sampler(options.sampling, seed, _stream(row, sample)) for sample in range(options.num_samples)]
    sequences = [Request(row.index, prompt, sampler, limits, options.n_logprobs) for sampler in samplers]
    return Answer(row, seed, tuple(Transcript(sequence, loaded.tokenizer, options.stop) for sequence in sequences))


def _stream(row: Row, sample: int) -> int:
    """With a seed of its own a row is drawn as a single prompt with that seed is, wherever it stands."""
    return row.index + (sample << _INDEX_BITS) if row.options.seed is None else sample


def _prompt_ids(row: Row, setting: BatchContext) -> tuple[int, ...]:
    prompter = setting.prompter
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
            setting.loaded.check_ids(ids)
            return ids


def _opening(row: Row, prompter: Prompter) -> list[Message]:
    system = row.system
    return prompter.opening() if system is None else [{"role": "system", "content": system}]


def _sample_fields(transcript: Transcript) -> dict[str, object]:
    sequence = transcript.sequence
    fields: dict[str, object] = {
        "text": transcript.text,
        "token_ids": sequence.generated,
        "finish_reason": sequence.finish_reason,
    }
    if sequence.n_logprobs is not None:
        fields["logprobs"] = [asdict(logprobs) for logprobs in sequence.logprobs]
    return fields


class Answering:
    """Rows on their way through a generator; the samples of a row are begun one after the other."""

    def __init__(
        self,
        rows: Rows[Row],
        setting: BatchContext,
        identities: Mapping[int, str],
        *,
        n_places: int,
        speculation: Speculation | None = None,
    ) -> None:
        """`n_places` rows decode side by side at most, with the speculation that was made ready for as many."""
        self._rows = deque(rows)
        self._setting = setting
        self._timings = Timings()
        self.speculation = speculation
        self._runner = Runner(setting.loaded.model, n_places)
        self._generator = Engine(self._runner, speculation, isolates_failures=True)
        self._identities = identities
        self._answers: dict[int, Answer] = {}  # under way, by the index of their rows
        self._waiting: deque[Transcript] = deque()  # samples that no place was free for yet
        self._decoding: list[Transcript] = []

    def run(self) -> Job[None]:
        """Answer all rows; the record of each is yielded as soon as it is over."""
        setting = self._setting
        # no row has been read for its length yet: each gets room for the whole context
        n_tokens = setting.loaded.limits(1, setting.max_context).max_context
        self._timings.compile_seconds = yield from compile_steps(
            self._runner, setting.compiling, n_tokens=n_tokens, settings=setting.settings
        )
        while self._rows or self._waiting or self._decoding:
            while self._generator.has_room and (self._waiting or self._rows):
                yield from self._begin()
            if self._decoding:
                self._timings.add_step((yield from self._generator.step()))
                yield from self._read()

    def metrics(self) -> Metrics:
        """The speed so far."""
        loaded = self._setting.loaded
        peak = peak_memory_bytes(loaded.model.device)
        return self._timings.metrics(load_seconds=loaded.seconds, peak_memory_bytes=peak)

    def _begin(self) -> Job[None]:
        """Give a free place to the next sample, of the next row where none is waiting."""
        if not self._waiting:
            row = self._rows.popleft()
            try:
                answer = begin(row, self._setting)
            except (UsageError, CorruptError) as error:
                yield refusal(row, error.message, self._identities[row.line])
                return
            self._answers[row.index] = answer
            self._waiting.extend(answer.transcripts)
        transcript = self._waiting.popleft()
        admission = self._generator.admit(transcript.sequence)
        self._decoding.append(transcript)
        self._timings.add_prefill((yield from _without_progress(admission)))
        yield from self._read()

    def _read(self) -> Job[None]:
        """Follow the text of what is decoding, which may end it; let go of what is over."""
        for transcript in self._decoding:
            transcript.read()
        for failed in [transcript.sequence for transcript in self._decoding if transcript.sequence.failure is not None]:
            yield from self._refuse(failed)
        over = {transcript.sequence.id for transcript in self._decoding if _is_over(transcript)}
        self._decoding = [transcript for transcript in self._decoding if not _is_over(transcript)]
        for index in sorted(over):
            if index in self._answers and self._answers[index].is_over:
                answer = self._answers.pop(index)
                yield record_of(answer.row, answer.fields(), self._identities[answer.row.line])

    def _refuse(self, failed: Request) -> Job[None]:
        """Give up a row one of whose samples has failed."""
        answer = self._answers.pop(failed.id, None)
        if answer is None or failed.failure is None:  # another sample of it has failed already
            return
        for transcript in answer.transcripts:
            transcript.sequence.finish_reason = transcript.sequence.finish_reason or "interrupted"
        self._waiting = deque(each for each in self._waiting if each.sequence.id != failed.id)
        yield refusal(answer.row, failed.failure.message, self._identities[answer.row.line])


def _is_over(transcript: Transcript) -> bool:
    return transcript.sequence.finish_reason is not None


def _without_progress(job: Job[T]) -> Job[T]:
    """A job whose own progress is too small to be shown: here it is rows that count."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
        if not isinstance(event, Progress):
            yield event
