"""Answers to the requests of tasks: log-likelihoods, rolling log-likelihoods, and generations."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.request import Request, StopStrings
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, check
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Passage
from gptfast_cli.core.evals.scoring import scores
from gptfast_cli.core.evals.tasks.bos_rules import BosRules
from gptfast_cli.core.evals.tasks.requests import (
    Answer,
    Failure,
    GenerationRequest,
    LikelihoodAnswer,
    LikelihoodRequest,
    RollingRequest,
    TaskRequest,
    key_of,
)
from gptfast_cli.core.events import result_of
from gptfast_cli.core.models.decoder import NonFiniteLogitsError
from gptfast_cli.core.tokenizers import Tokenizer


class _Answer:
    """A generation in progress."""

    def __init__(self, number: int, sequence: Request, tokenizer: Tokenizer, until: Sequence[str]) -> None:
        self.number = number
        self.sequence = sequence
        self.text = ""
        self._stream = tokenizer.stream()
        self._stops = StopStrings([stop for stop in until if stop])
        self._n_read = 0

    @property
    def result(self) -> str | Failure:
        """The text of a finished generation."""
        failure = self.sequence.failure
        return self.text if failure is None else Failure(failure.message)

    def read(self) -> bool:
        """Decode new tokens; returns whether the generation is finished."""
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
    loaded: LoadedModel, bos_rules: BosRules, requests: Sequence[GenerationRequest], *, batch_size: int, seed: int
) -> Iterator[tuple[int, str | Failure]]:
    """The answer to each request beside its number, as they are finished.

    A prompt is cut off from the left where it leaves no room for the answer. What is drawn for a request is the same
    whatever else is asked. There is a Failure in place of an answer where one may be as long as the context, where
    sampling options are out of their ranges, and where the model's logits are not finite.
    """
    engine = Engine(Runner(loaded.model, min(batch_size, len(requests))), isolates_failures=True)
    answers: dict[Request, _Answer] = {}
    for number in sorted(range(len(requests)), key=lambda number: requests[number].prompt):  # alike side by side
        try:
            request = _request(number, requests[number], loaded, bos_rules, seed)
        except UsageError as error:
            yield number, Failure(error.message)
        else:
            answers[request] = _Answer(number, request, bos_rules.tokenizer, requests[number].until)
    for step in engine.generate(list(answers)):
        for request in result_of(step).advanced:
            if answers[request].read():
                answer = answers.pop(request)
                yield answer.number, answer.result


def _request(number: int, request: GenerationRequest, loaded: LoadedModel, bos_rules: BosRules, seed: int) -> Request:
    check(request.sampling)
    most = loaded.config.max_context
    max_prompt = most - request.max_tokens
    if max_prompt < 1:
        raise UsageError(
            f"{request.max_tokens} new tokens exceed the context of {loaded.name}, {most} tokens.",
            "Use a model with a longer context, or a task with shorter answers (max_gen_toks).",
        )
    prompt = tuple(bos_rules.prompt(request.prompt)[-max_prompt:])
    sampler = Sampler(request.sampling, seed, stream=int(key_of(request)[:16], 16))
    return Request(number, prompt, sampler, loaded.limits(request.max_tokens, None, stop=request.until))


@dataclass(frozen=True, slots=True)
class RequestRunner:
    """Answers requests with a loaded model.

    batch_size: concurrent generations
    seed:       of sampled answers
    block_size: requests that are answered together: enough to find common prefixes and similar lengths
    """

    loaded: LoadedModel
    bos_rules: BosRules
    batch_size: int
    seed: int
    block_size: int = 2048

    def answers(self, requests: Sequence[TaskRequest]) -> Iterator[tuple[int, Answer | Failure]]:
        """(index, answer) of each request, block by block in any order.

        The answer is a Failure if a request cannot be answered, such as a continuation without tokens.
        """
        numbered = list(enumerate(requests))
        for first in range(0, len(numbered), self.block_size):
            block = numbered[first : first + self.block_size]
            yield from self._likelihoods([(n, each) for n, each in block if isinstance(each, LikelihoodRequest)])
            yield from self._rollings([(n, each) for n, each in block if isinstance(each, RollingRequest)])
            yield from self._generations([(n, each) for n, each in block if isinstance(each, GenerationRequest)])

    def _likelihoods(self, requests: Sequence[tuple[int, LikelihoodRequest]]) -> Iterator[tuple[int, Answer | Failure]]:
        passages: list[Passage] = []
        owners: list[int] = []
        for number, request in requests:
            try:
                passages.append(self.bos_rules.pair(request.context, request.continuation))
            except UsageError as error:
                yield number, Failure(error.message)
            else:
                owners.append(number)
        for at, score in scores(self.loaded.model, passages):
            yield owners[at], LikelihoodAnswer(score.logprob, score.is_greedy) if score.is_defined else self._failure

    def _rollings(self, requests: Sequence[tuple[int, RollingRequest]]) -> Iterator[tuple[int, Answer | Failure]]:
        windows: list[Passage] = []
        owners: list[int] = []
        for number, request in requests:
            try:
                own = list(self.bos_rules.rolling(request.text))
            except UsageError as error:
                yield number, Failure(error.message)
                continue
            windows += own
            owners += [number] * len(own)
            if not own:
                yield number, 0.0
        totals: dict[int, list[float]] = {}
        n_windows = Counter(owners)
        for at, score in scores(self.loaded.model, windows):
            number = owners[at]
            totals.setdefault(number, []).append(score.logprob)
            if len(totals[number]) == n_windows[number]:
                total = math.fsum(totals.pop(number))
                yield number, self._failure if math.isnan(total) else total

    @property
    def _failure(self) -> Failure:
        """Failure of a request whose logits are not finite."""
        return Failure(NonFiniteLogitsError(self.loaded.model.dtype, "along this text").message)

    def _generations(self, requests: Sequence[tuple[int, GenerationRequest]]) -> Iterator[tuple[int, Answer | Failure]]:
        if not requests:
            return
        asked = [request for _, request in requests]
        for at, text in generated(self.loaded, self.bos_rules, asked, batch_size=self.batch_size, seed=self.seed):
            yield requests[at][0], text
