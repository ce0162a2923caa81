"""Continuous batching: requests share the rows of one KV cache and are decoded together, step by step.

A waiting request takes a row as soon as one is free. Its prompt is prefilled in chunks between decode calls, of
`PREFILL_CHUNK` tokens in all between two of them, so that a long prompt never holds up the requests that are being
decoded for longer than one chunk takes (Agrawal et al. 2023, "SARATHI", arXiv:2308.16369).

The tokens of a request depend on its prompt and sampler only, not on what else runs. The engine knows token ids only.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptfast_cli.core.backends.base import phase
from gptfast_cli.core.engine.request import Request
from gptfast_cli.core.engine.runner import AHEAD_SECONDS, PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import draw_tokens, token_logprobs
from gptfast_cli.core.engine.speculative.speculation import RoundOutput, Speculation
from gptfast_cli.core.events import Job, Measured, Progress
from gptfast_cli.core.models.decoder import Logits, NonFiniteLogitsError
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.token_ids import TokenIdError


@dataclass(frozen=True, slots=True)
class PrefillOutput:
    """Cost of a prompt: tokens fed, tokens reused from the cache, seconds of prefill and of drawing the first token."""

    n_fed: int
    n_reused: int
    prefill_seconds: float
    first_token_seconds: float


_MOST_AHEAD = 16
"""Decode steps of one call, at most, where the model chooses tokens itself."""

MAX_UNDRAFTED = 4
"""The same where the proposer proposed nothing and is to be asked again soon."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one call of `step` did: it decoded, or prefilled a chunk of one prompt.

    advanced: the requests that received tokens, some of which may now be finished; none after a chunk that did not
              complete its prompt
    counts:   tokens that each of them received, an end token included
    seconds:  of decoding; n_bytes: read by it
    prefill:  cost of the prompt that this step completed: `advanced` is its request, with its first token
    """

    advanced: list[Request]
    counts: list[int]
    seconds: float = 0.0
    n_bytes: int = 0
    prefill: PrefillOutput | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of all requests."""
        return sum(self.counts)


@dataclass(slots=True)
class _Prefill:
    """A request whose prompt is being fed to a row: to the model, and after its first token to the draft.

    n_held:       tokens of the prompt that the row holds
    logits:       of the token after them, where known
    n_draft_left: tokens that the draft still lacks
    """

    request: Request
    row: int
    n_reused: int
    n_held: int
    logits: Logits | None
    watch: Stopwatch
    n_draft_left: int = 0


class Engine:
    """Decodes up to `runner.n_rows` requests at a time; others wait in the order of their submission.

    `generate` is a loop of `submit` and `step`. A request may be ended from outside at any time between two steps, by
    `abort` or by setting its `finish_reason`; its row is then free.
    """

    def __init__(
        self,
        runner: Runner,
        speculation: Speculation | None = None,
        *,
        isolates_failures: bool = False,
        prefill_chunk: int = PREFILL_CHUNK,
        ahead_seconds: float = AHEAD_SECONDS,
    ) -> None:
        """`isolates_failures`: a request that fails ends with its `failure`, and the others go on.

        Otherwise its failure is raised: TokenIdError for a prompt token without an embedding, NonFiniteLogitsError.
        """
        self._runner = runner
        self._speculation = speculation
        self._isolates_failures = isolates_failures
        self._prefill_chunk = prefill_chunk
        self._ahead_seconds = ahead_seconds
        self._waiting: deque[Request] = deque()
        self._prefilling: _Prefill | None = None  # its row is none of those of `_rows`
        self._rows: list[Request] = []  # being decoded, row by row; some may be finished until the next call
        self._n_fed = 0  # prompt tokens since the last decode call
        self._step_seconds = runner.guessed_seconds  # of the last decode step
        self._last_prompt: tuple[tuple[int, ...], Logits] | None = None  # with the logits of the token after it

    @property
    def active(self) -> list[Request]:
        """The unfinished requests that are being decoded, by row."""
        return [request for request in self._rows if request.finish_reason is None]

    @property
    def unfinished(self) -> list[Request]:
        """All unfinished requests: those being decoded, being prefilled, and waiting."""
        prefilling = [] if self._prefilling is None else [self._prefilling.request]
        return [each for each in (*self._rows, *prefilling, *self._waiting) if each.finish_reason is None]

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.unfinished)

    def submit(self, request: Request) -> None:
        """Let a request wait for a row; it is over once it has a finish reason."""
        self._waiting.append(request)

    def abort(self, request: Request) -> None:
        """End a request as "interrupted", wherever it is, unless it is finished; its tokens so far stay."""
        request.finish_reason = request.finish_reason or "interrupted"

    def generate(self, requests: Iterable[Request]) -> Iterator[Job[StepOutput]]:
        """The steps that finish all requests, each to be run before the next one is taken.

        Requests are taken from the iterable as rows get free, so that it may be long, or lazy.

            for step in engine.generate(requests):
                output = yield from step
        """
        coming = iter(requests)
        while True:
            while len(self.unfinished) < self._runner.n_rows and (request := next(coming, None)) is not None:
                self.submit(request)
            if not self.has_work:
                return
            yield self.step()

    def step(self, max_steps: int = _MOST_AHEAD) -> Job[StepOutput]:
        """Prefill a chunk of a waiting prompt, or decode: at least one more token for each active request.

        Requests that are decoded wait for no more than `prefill_chunk` prompt tokens between two decode calls. A call
        is a round of speculation, or up to `max_steps` steps, until a request ends, where the model chooses tokens
        itself. Raises what a request fails with, unless failures are isolated.
        """
        prefill = self._next_prefill()
        if prefill is not None:
            n_next = min(prefill.n_draft_left, self._prefill_chunk) or len(self._chunk(prefill))
            if self._n_fed + n_next <= self._prefill_chunk or not self.active:
                return (yield from self._feed(prefill))
        return (yield from self._decode(max_steps))

    def fill_rows(self) -> Job[None]:
        """Prefill waiting requests until no row is free, while active ones wait: for measurements of full batches."""
        while (prefill := self._next_prefill()) is not None:
            yield from self._feed(prefill)

    def _next_prefill(self) -> _Prefill | None:
        """The prompt that is being fed, or the next one that there is a free row for."""
        if self._prefilling is not None and self._prefilling.request.finish_reason is not None:
            self._prefilling = None
        while self._prefilling is None and self._waiting and len(self.active) < self._runner.n_rows:
            request = self._waiting.popleft()
            if request.finish_reason is None:
                self._prefilling = self._begin(request)
        return self._prefilling

    def _begin(self, request: Request) -> _Prefill:
        """Give a request the next row, with what the cache holds of its prompt."""
        self._retire()
        row, watch = len(self._rows), Stopwatch(self._runner.model.device)
        with watch:
            logits, n_reused = self._reuse_prefix(row, request.prompt)
        return _Prefill(request, row, n_reused, n_reused, logits, watch)

    def _reuse_prefix(self, row: int, prompt: tuple[int, ...]) -> tuple[Logits | None, int]:
        """Begin a row with what the cache holds of a prompt; the logits after it, where they are known."""
        if self._last_prompt is not None and self._last_prompt[0] == prompt:
            n_reused = self._runner.reuse_prefix(row, prompt)
            if n_reused == len(prompt):
                return self._last_prompt[1], n_reused
        # at least one token must be fed to know what comes after
        return None, self._runner.reuse_prefix(row, prompt[:-1])

    def _chunk(self, prefill: _Prefill) -> tuple[int, ...]:
        """The tokens of a prompt to be fed next; none where its row holds all of it."""
        return prefill.request.prompt[prefill.n_held : prefill.n_held + self._prefill_chunk]

    def _feed(self, prefill: _Prefill) -> Job[StepOutput]:
        """Feed a chunk of a prompt; where that was the last one, draw the first token."""
        request, chunk, n_prompt = prefill.request, self._chunk(prefill), len(prefill.request.prompt)
        if prefill.n_draft_left:
            self._feed_draft(prefill, self._prefill_chunk)
            return StepOutput([], [])
        self._n_fed = self._n_fed + len(chunk) if self.active else 0
        if chunk:
            try:
                with prefill.watch:
                    prefill.logits = self._runner.prefill(prefill.row, chunk)
            except TokenIdError as error:
                request.fail(error)
                if not self._isolates_failures:
                    raise
                return StepOutput([request], [0])
            prefill.n_held += len(chunk)
            yield Progress("prefill", prefill.n_held, n_prompt, "tokens")
        if prefill.n_held < n_prompt or request.finish_reason is not None:
            return StepOutput([], [])
        n_fed = n_prompt - prefill.n_reused
        yield Measured("prefill", n_fed, prefill.watch.seconds)
        return (yield from self._first_token(prefill, n_fed, self._prefill_chunk - len(chunk)))

    def _first_token(self, prefill: _Prefill, n_fed: int, n_draft_tokens: int) -> Job[StepOutput]:
        """Draw the first token of a prompt that has been fed, and feed up to `n_draft_tokens` of it to the draft."""
        request, logits, drawing = prefill.request, prefill.logits, Stopwatch(self._runner.model.device)
        assert logits is not None
        self._last_prompt = request.prompt, logits
        with drawing:
            self._draw(logits, [request])
        if self._speculation is not None and request.finish_reason is None:
            self._feed_draft(prefill, n_draft_tokens)
        else:
            self._activate(prefill)
        self._clear_failures()
        yield Measured("first token", 1, drawing.seconds)
        output = PrefillOutput(n_fed, prefill.n_reused, prefill.watch.seconds, drawing.seconds)
        return StepOutput([request], [0 if request.failure else 1], prefill=output)

    def _feed_draft(self, prefill: _Prefill, n_tokens: int) -> None:
        """Feed more of a prompt to the draft; once it has all, the request is decoded."""
        assert self._speculation is not None
        n_before = prefill.n_draft_left or len(prefill.request.prompt)
        prefill.n_draft_left = self._speculation.begin(self._runner, prefill.row, prefill.request.prompt, n_tokens)
        if self.active:
            self._n_fed += min(n_tokens, n_before - prefill.n_draft_left)
        if not prefill.n_draft_left:
            self._activate(prefill)

    def _activate(self, prefill: _Prefill) -> None:
        """Let a request be decoded from now on, in the row after the last active one."""
        self._retire()
        row, self._prefilling = len(self._rows), None
        if row != prefill.row:  # requests have finished meanwhile
            self._runner.swap(prefill.row, row)
            if self._speculation is not None:
                self._speculation.move(prefill.row, row)
        self._rows.append(prefill.request)

    def _decode(self, max_steps: int) -> Job[StepOutput]:
        """One decode call: a round of speculation, or plain steps."""
        self._n_fed = 0
        watch = Stopwatch(self._runner.model.device)
        with watch:
            self._retire()
            advanced = list(self._rows)
            draft_lengths = (
                self._speculation.draft_lengths(self._runner, advanced) if self._speculation is not None else []
            )
            output = None
            if self._speculation is not None and any(draft_lengths):
                output = self._speculation.run(self._runner, advanced, draft_lengths)
                max_steps = MAX_UNDRAFTED
                self._retry_failed(advanced)
            if output is None:
                output = self._plain(advanced, max_steps)
        self._clear_failures()
        if self._speculation is not None and not output.stats.n_rounds:
            self._speculation.record_steps(output.counts, watch.seconds)
        stats = output.stats
        yield Measured("decode", sum(output.counts), watch.seconds, len(advanced), stats.n_rounds, stats.n_accepted)
        return StepOutput(advanced, output.counts, watch.seconds, output.n_bytes)

    def _plain(self, advanced: list[Request], max_steps: int) -> RoundOutput:
        """Decode steps without a draft."""
        watch = Stopwatch(self._runner.model.device)
        with watch:
            n_steps = self._run_ahead(advanced, max_steps)
            if not n_steps:
                n_steps = 1
                logits = self._runner.step([request.generated[-1] for request in advanced])
                self._draw(logits, advanced)
        self._step_seconds = watch.seconds / n_steps
        n_rows = len(advanced)
        return RoundOutput([n_steps] * n_rows, self._runner.bytes_of_last_steps(n_rows, n_steps))

    def _run_ahead(self, advanced: list[Request], max_steps: int) -> int:
        """Steps in which the model chooses the tokens itself: how many were run, 0 where it cannot."""
        draws = [request.next_draw for request in advanced]
        if not (self._runner.runs_ahead and all(request.wants_tokens_alone for request in advanced)):
            return 0
        affordable = max(1, int(self._ahead_seconds / self._step_seconds))
        n_steps = min(max_steps, _MOST_AHEAD, affordable, *(request.n_left for request in advanced))
        uniforms = [[draw.uniform(step) for draw in draws] for step in range(n_steps)]
        stops = frozenset().union(*(request.limits.stop_ids for request in advanced))
        chosen = self._runner.run_ahead([[draw.generated[-1]] for draw in draws], draws, uniforms, stops)
        for tokens in chosen.tokens:
            for request, token in zip(advanced, tokens, strict=True):
                self._give(request, token)
        return len(chosen.tokens)

    def _draw(self, logits: Logits, requests: Sequence[Request]) -> None:
        with phase("sample"), self._runner.alone():
            tokens = draw_tokens(logits, [request.next_draw for request in requests])
        for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
            self._give(request, token)
            if request.n_logprobs is not None and len(request.generated) > len(request.logprobs):
                request.logprobs.append(token_logprobs(logits.whole[row], token, request.n_logprobs))

    def _retry_failed(self, advanced: list[Request]) -> None:
        """Draw the next token of requests that failed in a round without a draft, from a row that is fed anew.

        A drafted token for which the model gives NaN spoils the logits before it too, as 0 times NaN is NaN.
        """
        for row, request in enumerate(advanced):
            if request.failure is None:
                continue
            request.finish_reason = request.failure = None
            self._runner.wipe(row)
            text = (*request.prompt, *request.generated)
            for first in range(0, len(text), self._prefill_chunk):
                logits = self._runner.prefill(row, text[first : first + self._prefill_chunk])
            self._draw(logits, [request])

    def _give(self, request: Request, token: int) -> None:
        """Append a token to a request; `vocab_size` stands for logits that are not finite."""
        model = self._runner.model
        if token < model.config.vocab_size:
            request.take(token)
        else:
            request.fail(NonFiniteLogitsError(model.dtype, f"after {request.n_tokens:,} tokens"))

    def _clear_failures(self) -> None:
        """Wipe the rows of failed requests; raise a failure unless failures are isolated."""
        failed = [(row, each.failure) for row, each in enumerate(self._rows) if each.failure is not None]
        for row, _ in failed:
            self._runner.wipe(row)
        if failed and not self._isolates_failures:
            raise failed[0][1]

    def _retire(self) -> None:
        """Drop finished requests; the last ones take their rows, so that the active ones have the first rows."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row].finish_reason is not None:
                last = self._rows.pop()
                if row < len(self._rows):
                    self._runner.swap(len(self._rows), row)
                    if self._speculation is not None:
                        self._speculation.move(len(self._rows), row)
                    self._rows[row] = last
