"""`generate`: a prompt in, its continuations and their speed out."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gptfast_cli.core.bench.throughput import (
    Metrics,
    RankNumbers,
    SpeculationReport,
    Timings,
    rank_numbers,
    speculation_report,
)
from gptfast_cli.core.device import dtype_name, peak_memory_bytes
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import open_prompter
from gptfast_cli.core.engine.compiled import compile_steps
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.model_defaults import with_model_defaults
from gptfast_cli.core.engine.options import GenerationOptions, check_at_least
from gptfast_cli.core.engine.prompt_cache import PromptCache
from gptfast_cli.core.engine.reasoning import ReasoningParser
from gptfast_cli.core.engine.request import FinishReason, Request, Transcript, unmatched_stops
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, TokenLogprobs, uniform
from gptfast_cli.core.engine.speculative.draft_length import DraftedTexts
from gptfast_cli.core.engine.speculative.drafting import open_draft
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Prompt
from gptfast_cli.core.models.process_group import ALONE
from gptfast_cli.core.settings import Settings

_SYNTHETIC_SEED = 0  # synthetic prompts are the same in every run, so that their speeds compare


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue.

    prompt:        text, token ids, or None for `prompt_length` synthetic tokens
    options:       a batch size of None decodes all samples together
    show_prompt:   report the exact text of the prompt, after the chat template
    prompt_cache:  KV-cache file: read where it holds a prefix of the prompt, written afterwards where it does not
    """

    prompt: str | tuple[int, ...] | None
    settings: Settings
    prompt_length: int | None = None
    model: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    options: GenerationOptions = GenerationOptions()
    show_prompt: bool = False
    prompt_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation; `token_ids` are the generated ones without the end token, `prompt_tokens` is a count.

    logprobs:  of the generated tokens, where they were asked for
    content:   the text after the reasoning, the whole text if there is none; None but for answers of thinking models
    reasoning: the text between the model's delimiters of reasoning; None if there is none
    """

    id: int
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    content: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """All continuations of a prompt and what they cost.

    kv_dtype: that keys and values were kept in
    sampling: parameters of all samples, defaults of the model included
    ranks:    metrics of each rank, if the model is sharded over several
    """

    model: str
    kv_dtype: str
    kv_cache_bytes: int
    seed: int
    sampling: Sampling
    samples: tuple[Sample, ...]
    metrics: Metrics
    speculation: SpeculationReport | None = None
    ranks: tuple[RankNumbers, ...] | None = None


def run(request: GenerateRequest) -> Job[GenerateResult]:
    """Generate; an interrupt once the model runs ends it early, with all that is there.

    Raises UsageError for a value out of range or a prompt that does not fit; NotFoundError and CorruptError as
    loading and chat templates do.
    """
    _check(request)
    loaded = yield from load(request.model, request.settings, request.runtime)
    options = yield from with_model_defaults(request.options, loaded.checkpoint)
    request = replace(request, options=options)
    yield from (Note(sentence) for sentence in unmatched_stops(options.stop, loaded.tokenizer))
    asked = yield from _prompt_ids(request, loaded)
    prompt = asked.ids
    limits = loaded.limits(
        options.new_tokens(is_chat=asked.is_chat),
        options.max_context,
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        turn_end_ids=asked.turn_end_ids,
    )
    limits.check_prompt(len(prompt))
    seed = request.runtime.group.broadcast(secrets.randbits(31) if options.seed is None else options.seed)
    sequences = [
        Request(sample, prompt, Sampler(options.sampling, seed, sample), limits, options.n_logprobs)
        for sample in range(options.num_samples)
    ]
    transcripts = [Transcript(each, loaded.tokenizer, options.stop, asked.parser()) for each in sequences]
    timings = Timings()
    n_tokens = limits.most_tokens(len(prompt))
    runner = Runner(loaded.model, min(options.batch_size or options.num_samples, options.num_samples))
    speculation = yield from open_draft(
        options.drafting,
        loaded,
        DraftedTexts(runner.n_rows, n_tokens, options.sampling.temperature),
        settings=request.settings,
        runtime=request.runtime,
    )
    prompt_cache = PromptCache(request.prompt_cache, loaded, runner, prompt) if request.prompt_cache else None
    if prompt_cache is not None:
        yield from prompt_cache.load()
    timings.compile_seconds = yield from compile_steps(
        runner, options.compiling, n_tokens=n_tokens, settings=request.settings
    )
    group, began = request.runtime.group, request.runtime.group.seconds
    try:
        yield from _decode(transcripts, Engine(runner, speculation), timings, prompt_cache)
    except KeyboardInterrupt:
        group = ALONE  # the others are left in the middle of a step
        for transcript in transcripts:
            yield from transcript.interrupt()
    if prompt_cache is not None and timings.ttft_seconds is not None:  # the prompt has been fed
        yield from prompt_cache.save()
    seconds = timings.seconds + (speculation.rounds.draft_prefill_seconds if speculation else 0.0)
    metrics = timings.metrics(load_seconds=loaded.seconds, peak_memory_bytes=peak_memory_bytes(loaded.model.device))
    return GenerateResult(
        model=loaded.name,
        kv_dtype=dtype_name(loaded.model.kv_dtype),
        kv_cache_bytes=runner.cache_bytes,
        seed=seed,
        sampling=options.sampling,
        samples=tuple(_sample(transcript) for transcript in transcripts),
        metrics=metrics,
        speculation=speculation_report(speculation),
        ranks=rank_numbers(group, metrics, seconds=seconds, began=began),
    )


def _decode(
    transcripts: list[Transcript], engine: Engine, timings: Timings, prompt_cache: PromptCache | None
) -> Job[None]:
    transcript_of = {transcript.request: transcript for transcript in transcripts}
    for step in engine.generate(transcript_of):
        output = yield from step
        if prompt_cache is not None and output.prefill is not None and timings.ttft_seconds is None:
            prompt_cache.keep()
        timings.add(output)
        for request in output.advanced:
            yield from transcript_of[request].follow()


def _sample(transcript: Transcript) -> Sample:
    sequence, parser = transcript.request, transcript.reasoning
    assert sequence.finish_reason is not None
    return Sample(
        id=sequence.id,
        text=transcript.text,
        token_ids=tuple(sequence.generated),
        prompt_tokens=len(sequence.prompt),
        finish_reason=sequence.finish_reason,
        logprobs=None if sequence.n_logprobs is None else tuple(sequence.logprobs),
        content=None if parser is None else parser.content,
        reasoning=None if parser is None else parser.reasoning,
    )


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Token ids of a prompt, those that end an answer to it, and whether it is a message in a chat.

    parser: returns a new parser of an answer's reasoning, or None
    """

    ids: tuple[int, ...]
    turn_end_ids: frozenset[int] = frozenset()
    is_chat: bool = False
    parser: Callable[[], ReasoningParser | None] = lambda: None


def _prompt_ids(request: GenerateRequest, loaded: LoadedModel) -> Job[_Prompt]:
    """The prompt, all of whose token ids are in the model's vocabulary."""
    vocab_size = loaded.config.vocab_size
    match request.prompt:
        case None:
            assert request.prompt_length is not None
            loaded.limits(request.options.max_new_tokens, request.options.max_context).check_prompt(
                request.prompt_length
            )
            draws = (uniform(_SYNTHETIC_SEED, 0, position) for position in range(request.prompt_length))
            return _Prompt(tuple(int(draw * vocab_size) for draw in draws))
        case str(text):
            return (yield from _encode(text, request, loaded))
        case ids:
            loaded.check_ids(ids)
            return _Prompt(ids)


def _encode(prompt: str, request: GenerateRequest, loaded: LoadedModel) -> Job[_Prompt]:
    with open_prompter(loaded, request.options.chat) as prompter:
        yield from prompter.notes()
        text = prompter.text(prompt)
        ids = prompter.encode(text)
        if request.show_prompt:
            yield Note(f"{text}\n({len(ids)} tokens)")
        yield Prompt(prompt, continues=not prompter.is_chat)
        return _Prompt(ids, prompter.turn_end_ids, prompter.is_chat, partial(prompter.reasoning_parser, ids))


def _check(request: GenerateRequest) -> None:
    """Raise UsageError for whatever can be seen to be wrong before a model is loaded."""
    request.options.check()
    check_at_least(1, {"--prompt-length": request.prompt_length})
    if request.prompt in ("", ()):
        raise UsageError("The prompt is empty.", 'Give it some words to go on: gptfast generate "Once upon a time"')
