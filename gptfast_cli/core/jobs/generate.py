"""`generate`: a prompt in, its continuations and their speed out."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from gptfast_cli.core.decode.generator import FinishReason, Generator, Limits, Sequence
from gptfast_cli.core.decode.loading import LoadedModel, Placing, load
from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import Sampling, check
from gptfast_cli.core.decode.transcript import Transcript
from gptfast_cli.core.device import peak_memory_bytes
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Measured, Text
from gptfast_cli.core.measure.throughput import Metrics, Timings
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

_LARGEST_SEED = 2**64 - 1
_SYNTHETIC_SEED = 0  # synthetic prompts are the same in every run, so that their speeds compare


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What to continue, with what, and how far.

    prompt:      text, token ids, or None for `prompt_length` synthetic tokens
    max_context: most tokens of prompt and continuation together; None is the model's own limit
    seed:        None takes a fresh one, which the result tells
    batch_size:  samples decoded together; None decodes all of them together
    """

    prompt: str | tuple[int, ...] | None
    settings: Settings
    prompt_length: int | None = None
    model: str | None = None
    placing: Placing = Placing()
    sampling: Sampling = Sampling()
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    max_context: int | None = None
    seed: int | None = None
    num_samples: int = 1
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation; `token_ids` are the generated ones without the end token, `prompt_tokens` is a count."""

    id: int
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Generation:
    """All continuations of a prompt and what they cost."""

    model: str
    seed: int
    samples: tuple[Sample, ...]
    metrics: Metrics


def run(request: GenerateRequest) -> Job[Generation]:
    """Generate; an interrupt once the model runs ends it early, with all that is there.

    Raises UsageError for a value out of range or a prompt that does not fit; NotFoundError and CorruptError as
    loading does.
    """
    _check(request)
    loaded = yield from load(request.model, request.settings, request.placing)
    prompt = _prompt_ids(request, loaded)
    limits = _limits(request, loaded, len(prompt))
    sampler = Sampler(request.sampling, secrets.randbits(31) if request.seed is None else request.seed)
    sequences = [Sequence(sample, prompt) for sample in range(request.num_samples)]
    transcripts = [Transcript(sequence, loaded.tokenizer, request.stop) for sequence in sequences]
    timings = Timings()
    try:
        for batch in _batches(transcripts, request.batch_size):
            yield from _decode(batch, loaded, sampler=sampler, limits=limits, timings=timings)
    except KeyboardInterrupt:
        yield from _interrupt(transcripts)
    return Generation(
        model=loaded.name,
        seed=sampler.seed,
        samples=tuple(_sample(transcript) for transcript in transcripts),
        metrics=timings.metrics(load_seconds=loaded.seconds, peak_memory_bytes=peak_memory_bytes(loaded.model.device)),
    )


def _decode(
    transcripts: list[Transcript], loaded: LoadedModel, *, sampler: Sampler, limits: Limits, timings: Timings
) -> Job[None]:
    sequences = [transcript.sequence for transcript in transcripts]
    texts = {transcript.sequence.id: transcript for transcript in transcripts}
    generator = Generator(loaded.model, sampler, sequences, limits)
    prefill = yield from generator.prefill()
    timings.add_prefill(generator.prompt_tokens, prefill)
    is_first = True
    while generator.active:
        watch = Stopwatch(loaded.model.device)
        with watch:
            step = generator.step()
        n_tokens = len(step.advanced)
        if is_first:
            timings.add_first_token(prefill + watch.seconds)
            yield Measured("first token", n_tokens, watch.seconds)
        else:
            timings.add_step(n_tokens, watch.seconds, n_bytes=step.n_bytes)
            yield Measured("decode", n_tokens, watch.seconds)
        is_first = False
        for sequence in step.advanced:
            if text := texts[sequence.id].read():
                yield Text(sequence.id, text)


def _interrupt(transcripts: list[Transcript]) -> Job[None]:
    for transcript in transcripts:
        if transcript.sequence.finish_reason is None:
            transcript.sequence.finish_reason = "interrupted"
            if text := transcript.read():
                yield Text(transcript.sequence.id, text)


def _sample(transcript: Transcript) -> Sample:
    sequence = transcript.sequence
    assert sequence.finish_reason is not None
    return Sample(sequence.id, transcript.text, tuple(sequence.generated), len(sequence.prompt), sequence.finish_reason)


def _batches(transcripts: list[Transcript], size: int | None) -> Iterator[list[Transcript]]:
    size = size or len(transcripts)
    for first in range(0, len(transcripts), size):
        yield transcripts[first : first + size]


def _prompt_ids(request: GenerateRequest, loaded: LoadedModel) -> tuple[int, ...]:
    """The prompt as token ids, of which the model knows every one."""
    vocab_size = loaded.config.vocab_size
    match request.prompt:
        case None:
            assert request.prompt_length is not None
            draws = (uniform(_SYNTHETIC_SEED, 0, position) for position in range(request.prompt_length))
            return tuple(int(draw * vocab_size) for draw in draws)
        case str(text):
            return _encode(text, loaded)
        case ids:
            if unknown := next((token for token in ids if not 0 <= token < vocab_size), None):
                raise UsageError(f"Token id {unknown} is outside of the model's vocabulary of {vocab_size}.")
            return ids


def _encode(text: str, loaded: LoadedModel) -> tuple[int, ...]:
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer.", "Give token ids instead: --prompt-ids 1,2,3")
    return tuple(loaded.tokenizer.encode(text))


def _limits(request: GenerateRequest, loaded: LoadedModel, n_prompt: int) -> Limits:
    longest = loaded.config.max_context
    max_context = request.max_context or longest
    if max_context > longest:
        raise UsageError(f"--max-context {max_context} is beyond the {longest} tokens that {loaded.name} can hold.")
    if n_prompt >= max_context:
        raise UsageError(
            f"The prompt has {n_prompt} tokens, and the context holds {max_context}, the answer included.",
            "Shorten the prompt" + (", or raise --max-context." if max_context < longest else "."),
        )
    return Limits(request.max_new_tokens, max_context, frozenset() if request.ignore_eos else loaded.stop_ids)


def _check(request: GenerateRequest) -> None:
    """Raise UsageError for whatever can be seen to be wrong before a model is loaded."""
    check(request.sampling)
    at_least_one = {
        "--max-new-tokens": request.max_new_tokens,
        "--num-samples": request.num_samples,
        "--batch-size": request.batch_size,
        "--max-context": request.max_context,
        "--prompt-length": request.prompt_length,
    }
    for option, value in at_least_one.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}.")
    if request.seed is not None and not 0 <= request.seed <= _LARGEST_SEED:
        raise UsageError(f"--seed must be from 0 to {_LARGEST_SEED}, not {request.seed}.")
    if request.prompt in ("", ()):
        raise UsageError("The prompt is empty.", 'Give it some words to go on: gptfast generate "Once upon a time"')
    if "" in request.stop:
        raise UsageError("--stop needs at least one character.")
