"""Answering rows side by side: each decodes at its own position, and one that is over leaves its place to the next."""

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Rows

from gptfast_cli.core.batch.answer import Answer, Setting, begin
from gptfast_cli.core.batch.records import record_of, refusal
from gptfast_cli.core.batch.rows import Row
from gptfast_cli.core.decode.compiled import compile_steps
from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.decode.speculation import Speculation
from gptfast_cli.core.decode.transcript import Transcript
from gptfast_cli.core.device import peak_memory_bytes
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Job, Progress, T
from gptfast_cli.core.measure.throughput import Metrics, Timings


class Answering:
    """Rows on their way through a generator; the samples of a row are begun one after the other."""

    def __init__(
        self,
        rows: Rows[Row],
        setting: Setting,
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
        self._generator = Generator(self._runner, speculation, isolates_failures=True)
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
                self._timings.add_stride((yield from self._generator.step()))
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
        self._timings.add_admission((yield from _without_progress(admission)))
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

    def _refuse(self, failed: Sequence) -> Job[None]:
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
