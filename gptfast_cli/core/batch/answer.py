"""The answer to one row: from its prompt to sequences to decode, and from these to what its record tells."""

from dataclasses import asdict, dataclass

from gptfast_cli.core.batch.row_prompt import Messages
from gptfast_cli.core.batch.rows import Row
from gptfast_cli.core.decode.compiled import Compiling
from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.decode.prompter import Message, Prompter
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.decode.transcript import Transcript
from gptfast_cli.core.settings import Settings

_INDEX_BITS = 32  # of a stream's number: the row; the bits above them tell the samples of a row apart


@dataclass(frozen=True, slots=True)
class Setting:
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


def begin(row: Row, setting: Setting) -> Answer:
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
    sequences = [Sequence(row.index, prompt, sampler, limits, options.n_logprobs) for sampler in samplers]
    return Answer(row, seed, tuple(Transcript(sequence, loaded.tokenizer, options.stop) for sequence in sequences))


def _stream(row: Row, sample: int) -> int:
    """With a seed of its own a row is drawn as a single prompt with that seed is, wherever it stands."""
    return row.index + (sample << _INDEX_BITS) if row.options.seed is None else sample


def _prompt_ids(row: Row, setting: Setting) -> tuple[int, ...]:
    prompter = setting.prompter
    match row.prompt:
        case str(text) if row.options.system is None:
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
    system = row.options.system
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
