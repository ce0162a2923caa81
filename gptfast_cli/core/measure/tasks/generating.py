"""Answers in a model's own words, many of them side by side."""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Rows

from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import check
from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.decode.stopping import StopStrings
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import result_of
from gptfast_cli.core.measure.tasks.beginnings import Beginnings
from gptfast_cli.core.measure.tasks.requests import Failure, Generation, key_of
from gptfast_cli.core.tokenizers import Tokenizer


class _Answer:
    """An answer under way; its text stands alone, as if nothing had come before it."""

    def __init__(self, number: int, sequence: Sequence, tokenizer: Tokenizer, until: Rows[str]) -> None:
        self.number = number
        self.sequence = sequence
        self.text = ""
        self._stream = tokenizer.stream()
        self._stops = StopStrings([stop for stop in until if stop])
        self._n_read = 0

    @property
    def result(self) -> str | Failure:
        """The text, once the answer is over."""
        failure = self.sequence.failure
        return self.text if failure is None else Failure(failure.message)

    def read(self) -> bool:
        """Take in what was generated since the last call; whether the answer is over."""
        for token in self.sequence.generated[self._n_read :]:
            self._n_read += 1
            self.text += self._stops.push(self._stream.push(token))
            if self._stops.found:
                self.sequence.finish_reason = "stop"
                break
        if self.sequence.finish_reason is None:
            return False
        if not self._stops.found:
            self.text += self._stops.push(self._stream.finish()) + self._stops.finish()
        return True


def generated(
    loaded: LoadedModel, beginnings: Beginnings, requests: Rows[Generation], *, batch_size: int, seed: int
) -> Iterator[tuple[int, str | Failure]]:
    """The answer to each request beside its number, as they are finished.

    A prompt is cut off from the left where it leaves no room for the answer. What is drawn for a request is the same
    whatever else is asked. There is a Failure in place of an answer where one may be as long as the context, where
    sampling options are out of their ranges, and where the model's logits are not finite.
    """
    waiting = deque(sorted(range(len(requests)), key=lambda number: requests[number].prompt))  # alike side by side
    generator = Generator(Runner(loaded.model, min(batch_size, len(requests))), isolates_failures=True)
    answers: list[_Answer] = []
    while waiting or answers:
        while waiting and generator.has_room:
            number = waiting.popleft()
            try:
                sequence = _sequence(number, requests[number], loaded, beginnings, seed)
            except UsageError as error:
                yield number, Failure(error.message)
                continue
            result_of(generator.admit(sequence))
            answers.append(_Answer(number, sequence, beginnings.tokenizer, requests[number].until))
        over = [answer for answer in answers if answer.read()]
        answers = [answer for answer in answers if answer not in over]
        yield from ((answer.number, answer.result) for answer in over)
        if answers and not (waiting and generator.has_room):
            result_of(generator.step())


def _sequence(number: int, request: Generation, loaded: LoadedModel, beginnings: Beginnings, seed: int) -> Sequence:
    check(request.sampling)
    most = loaded.config.max_context
    n_given = most - request.max_tokens
    if n_given < 1:
        raise UsageError(
            f"Answers of up to {request.max_tokens} tokens are beyond the {most} that {loaded.name} can hold.",
            "Take a model with a longer context, or a task with shorter answers (max_gen_toks).",
        )
    prompt = tuple(beginnings.prompt(request.prompt)[-n_given:])
    sampler = Sampler(request.sampling, seed, stream=int(key_of(request)[:16], 16))
    return Sequence(number, prompt, sampler, loaded.limits(request.max_tokens, None, stop=request.until))
