"""A chat with a model, turn by turn, whose history stays in the KV cache.

Each turn renders the whole conversation, and the runner feeds the tokens that its cache does not hold yet. So the
model always stands where a fresh prompt of the same messages would put it: where an answer, read back as text, gives
other tokens than those that were generated, they are fed again.
"""

import contextlib
import json
import secrets
from dataclasses import dataclass
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
    """A model to chat with. Of the options, `num_samples`, `n_logprobs` and `batch_size` have no effect here."""

    settings: Settings
    model: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    options: GenerationOptions = GenerationOptions()


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer, and what it took.

    prompt_tokens: of the conversation up to the answer; n_fed: those of them that the cache did not hold
    ttft_s:        from the start of prefill to the first token; None if none came
    decode_tok_s:  tokens after the first ÷ time after the first
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
        """Tokens of the conversation, the answer included."""
        return self.prompt_tokens + self.n_generated

    @property
    def filled_the_context(self) -> bool:
        """Whether the answer was cut because the context has no more room."""
        return self.finish_reason == "length" and self.context_used >= self.max_context

    @property
    def is_kept(self) -> bool:
        """Whether it is part of the conversation: not where it was interrupted before the first character."""
        return self.finish_reason != "interrupted" or bool(self.text)


class Chat:
    """A conversation with a loaded model; leaving it ends its prompter."""

    def __init__(self, loaded: LoadedModel, request: ChatRequest) -> None:
        options = request.options
        self._loaded = loaded
        self._request = request
        self._n_turns = 0  # ever taken: each draws from a stream of its own
        self._own_files: set[Path] = set()
        self._engine: Engine | None = None
        self.prompter = open_prompter(loaded, options.chat)
        self._limits = loaded.limits(
            options.max_new_tokens,
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
        """Send a message; an interrupt ends the answer early, and what there is of it is kept.

        Raises what Conversation.prompt raises; the conversation is then as it was before.
        """
        prompt = self.conversation.prompt(message)
        engine = yield from self.start()
        sampler = Sampler(self._request.options.sampling, self.seed, self._n_turns)
        self._n_turns += 1
        sequence = Request(0, prompt, sampler, self._limits)
        transcript = Transcript(sequence, self._loaded.tokenizer, self._request.options.stop)
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
            self.conversation.exchanges.append(Exchange(message, turn.text))
        return turn

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON, a row of a file of prompts.

        Raises NotFoundError if there is nothing to save or no folder to save it in, and UsageError where something
        stands at `path` that was not saved by this chat.
        """
        if not self.conversation.exchanges:
            raise NotFoundError("There is nothing to save yet.")
        path = path.absolute()
        if not path.parent.is_dir():
            raise NotFoundError(f"There is no folder {str(path.parent)!r}.")
        if path.exists() and path not in self._own_files:
            raise UsageError(f"{str(path)!r} is there already, and was not saved by this chat.", "Give another name.")
        write_whole(path, json.dumps(self.conversation.row) + "\n")
        self._own_files.add(path)

    def start(self) -> Job[Engine]:
        """Make ready what decodes, unless it is."""
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
    """Load a model and begin a conversation with it.

    Raises UsageError for a value out of range and for a model that has no tokenizer; NotFoundError and CorruptError as
    loading and chat templates do.
    """
    request.options.check()
    loaded = yield from load(request.model, request.settings, request.runtime)
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, and a chat is made of text.")
    with contextlib.ExitStack() as unless_opened:
        chat = unless_opened.enter_context(Chat(loaded, request))
        yield from chat.start()
        unless_opened.pop_all()
    yield from chat.prompter.notes()
    yield from (Note(sentence) for sentence in unmatched_stops(request.options.stop, loaded.tokenizer))
    if not chat.prompter.is_chat:
        yield Note(f"{loaded.name} is no chat model: it continues the text that you write line by line.")
    return chat
