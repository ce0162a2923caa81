"""Multi-turn chat with a model; the conversation stays in the KV cache.

Each turn renders and tokenizes the whole conversation, and the runner prefills only the tokens after the longest prefix
in its cache. So the state always equals that of a fresh prompt with the same messages: where an answer's text tokenizes
differently from the generated tokens, those tokens are fed again.
"""

import contextlib
import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from gptfast_cli.core.bench.throughput import Timings
from gptfast_cli.core.device import peak_memory_bytes
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import Conversation, Exchange, open_prompter
from gptfast_cli.core.engine.compiled import compile_steps
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.model_defaults import with_model_defaults
from gptfast_cli.core.engine.options import GenerationOptions
from gptfast_cli.core.engine.request import FinishReason, Request, Transcript, unmatched_stops
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler
from gptfast_cli.core.engine.speculative.draft_length import DraftedTexts
from gptfast_cli.core.engine.speculative.drafting import open_draft
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.files import write_whole
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A model and options for a chat; `num_samples`, `n_logprobs` and `batch_size` have no effect."""

    settings: Settings
    model: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    options: GenerationOptions = GenerationOptions()


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer and its metrics.

    prompt_tokens: tokens of the conversation up to the answer
    n_fed:         prompt tokens that were not in the cache
    ttft_s:        seconds from the start of prefill to the first token; None without one
    decode_tok_s:  tokens after the first ÷ seconds after the first
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    n_fed: int
    n_generated: int
    max_context: int
    ttft_s: float | None
    decode_tok_s: float | None

    @property
    def context_used(self) -> int:
        """Tokens of the conversation, including the answer."""
        return self.prompt_tokens + self.n_generated

    @property
    def filled_the_context(self) -> bool:
        """Whether the answer was cut because the context is full."""
        return self.finish_reason == "length" and self.context_used >= self.max_context

    @property
    def is_kept(self) -> bool:
        """Whether the turn joins the conversation: False if it was interrupted before the first character."""
        return self.finish_reason != "interrupted" or bool(self.text)


class Chat:
    """A conversation with a loaded model; a context manager that closes its prompter."""

    def __init__(self, loaded: LoadedModel, request: ChatRequest) -> None:
        options = request.options
        self._loaded = loaded
        self._request = request
        self._n_turns = 0  # turns so far: each samples from its own random stream
        self._own_files: set[Path] = set()
        self._engine: Engine | None = None
        self.prompter = open_prompter(loaded, options.chat)
        self._limits = loaded.limits(
            options.new_tokens(is_chat=True),
            options.max_context,
            ignore_eos=options.ignore_eos,
            stop=options.stop,
            turn_end_ids=self.prompter.turn_end_ids,
        )
        self.conversation = Conversation(self.prompter, self._limits)
        self.seed = secrets.randbits(31) if options.seed is None else options.seed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.prompter.__exit__(kind, error, trace)

    def say(self, message: str) -> Job[Turn]:
        """Send a message; an interrupt ends the answer early and keeps its text so far.

        Raises what Conversation.prompt raises; the conversation is then unchanged.
        """
        prompt = self.conversation.prompt(message)
        engine = yield from self.start()
        sampler = Sampler(self._request.options.sampling, self.seed, self._n_turns)
        self._n_turns += 1
        sequence = Request(0, prompt, sampler, self._limits)
        parser = self.prompter.reasoning_parser(prompt)
        transcript = Transcript(sequence, self._loaded.tokenizer, self._request.options.stop, parser)
        timings = Timings()
        try:
            yield from _decode(transcript, engine, timings)
        except KeyboardInterrupt:
            yield from transcript.interrupt()
        except Exception:
            self._engine = None  # its cache may hold half a step
            raise
        turn = self._turn(transcript, timings)
        if turn.is_kept:
            exchange = Exchange(message, turn.text)
            if parser is not None:
                exchange = Exchange(message, parser.content, parser.reasoning)
            self.conversation.exchanges.append(exchange)
        return turn

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON: a row of a prompts file.

        Raises NotFoundError for an empty conversation or a missing folder, UsageError if `path` exists and was not
        saved by this chat.
        """
        if not self.conversation.exchanges:
            raise NotFoundError("There is nothing to save yet.")
        path = path.absolute()
        if not path.parent.is_dir():
            raise NotFoundError(f"There is no folder {str(path.parent)!r}.")
        if path.exists() and path not in self._own_files:
            raise UsageError(f"{str(path)!r} already exists and was not saved by this chat.", "Give another name.")
        write_whole(path, json.dumps(self.conversation.row) + "\n")
        self._own_files.add(path)

    def start(self) -> Job[Engine]:
        """The engine; loads the draft and compiles on the first call."""
        if self._engine is None:
            runner = Runner(self._loaded.model, 1)
            request = self._request
            n_tokens, settings = self._limits.max_context, request.settings
            speculation = yield from open_draft(
                request.options.drafting,
                self._loaded,
                DraftedTexts(1, n_tokens, request.options.sampling.temperature),
                settings=settings,
                runtime=request.runtime,
            )
            compiling = request.options.compiling
            seconds = yield from compile_steps(runner, compiling, n_tokens=n_tokens, settings=settings)
            if seconds is not None:
                yield Note(f"Compiled in {seconds:.1f} s")
            self._engine = Engine(runner, speculation)
        return self._engine

    def _turn(self, transcript: Transcript, timings: Timings) -> Turn:
        sequence = transcript.request
        assert sequence.finish_reason is not None
        memory_bytes = peak_memory_bytes(self._loaded.model.device)
        metrics = timings.metrics(load_seconds=self._loaded.seconds, peak_memory_bytes=memory_bytes)
        return Turn(
            text=transcript.text,
            finish_reason=sequence.finish_reason,
            prompt_tokens=len(sequence.prompt),
            n_fed=timings.prefill_tokens,
            n_generated=len(sequence.generated),
            max_context=self._limits.max_context,
            ttft_s=metrics.ttft_s,
            decode_tok_s=metrics.decode_tok_s,
        )


def _decode(transcript: Transcript, engine: Engine, timings: Timings) -> Job[None]:
    for step in engine.generate([transcript.request]):
        timings.add((yield from step))
        yield from transcript.follow()


def open_chat(request: ChatRequest) -> Job[Chat]:
    """Load a model and start a conversation.

    Raises UsageError for an option out of range or a model without a tokenizer; NotFoundError and CorruptError for the
    model and the chat template.
    """
    request.options.check()
    loaded = yield from load(request.model, request.settings, request.runtime)
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, which a chat requires.")
    options = yield from with_model_defaults(request.options, loaded.checkpoint)
    request = replace(request, options=options)
    with contextlib.ExitStack() as unless_opened:
        chat = unless_opened.enter_context(Chat(loaded, request))
        yield from chat.start()
        unless_opened.pop_all()
    yield from chat.prompter.notes()
    yield from (Note(sentence) for sentence in unmatched_stops(options.stop, loaded.tokenizer))
    if not chat.prompter.is_chat:
        yield Note(f"{loaded.name} is used without a chat template: it continues the text line by line.")
    return chat
