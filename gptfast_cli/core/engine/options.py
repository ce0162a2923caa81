"""Generation options, shared by all requests that generate, and range checks of options that several commands have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.sampling import Sampling, check
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.tokenizers.chat import check_variables

LARGEST_SEED = 2**64 - 1
MOST_SAMPLES = 2**16


DEFAULT_NEW_TOKENS: Final = 200

MODEL_DEFAULTS: Final = frozenset({*(field.name for field in fields(Sampling)), "max_new_tokens", "stop"})
"""Names of the options that the makers of a model may set in its generation_config.json."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Options of one generation.

    max_new_tokens: maximum number of generated tokens for each sample; None: see `new_tokens`
    stop:           strings before which a sample ends
    ignore_eos:     continue after an end-of-sequence token
    num_samples:    continuations of one prompt
    n_logprobs:     number of alternatives with log-probabilities for each token; None: no log-probabilities
    seed:           of the random draws; None: a random seed, reported in the result
    max_context:    maximum number of tokens, prompt included; None: the model's limit
    batch_size:     maximum number of samples decoded together; None: the job's default
    drafting:       speculative decoding; None: off
    unset:          names of options that nobody gave: defaults of the model replace their values, see `model_defaults`
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int | None = DEFAULT_NEW_TOKENS
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    num_samples: int = 1
    n_logprobs: int | None = None
    seed: int | None = None
    max_context: int | None = None
    batch_size: int | None = None
    chat: ChatOptions = ChatOptions()
    drafting: DraftOptions | None = None
    compiling: Compiling = Compiling()
    unset: frozenset[str] = frozenset()

    def new_tokens(self, *, is_chat: bool) -> int | None:
        """Maximum number of new tokens; None: an answer in a chat ends with its turn, or where the context is full."""
        return self.max_new_tokens or (None if is_chat else DEFAULT_NEW_TOKENS)

    def check(self) -> None:
        """Raise UsageError for a value out of its range, before a model is loaded; the error names the option."""
        check(self.sampling)
        check_seed(self.seed)
        check_stops(self.stop)
        check_variables(self.chat.variables)
        check_samples(self.num_samples)
        check_at_least(
            1,
            {
                "--max-new-tokens": self.max_new_tokens,
                "--batch-size": self.batch_size,
                "--max-context": self.max_context,
            },
        )
        check_at_least(0, {"--logprobs": self.n_logprobs})


def check_at_least(minimum: int, values: Mapping[str, int | None]) -> None:
    """Raise UsageError for an option whose value is below the minimum; None: not given."""
    for option, value in values.items():
        if value is not None and value < minimum:
            raise UsageError(f"{option} must be at least {minimum}, not {value}.")


def check_seed(seed: int | None) -> None:
    """Raise UsageError for a seed that is not an unsigned 64-bit number."""
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed must be from 0 to {LARGEST_SEED}, not {seed}.")


def check_samples(n: int) -> None:
    """Raise UsageError for a number of samples that is out of its range."""
    if not 1 <= n <= MOST_SAMPLES:
        raise UsageError(f"--num-samples must be from 1 to {MOST_SAMPLES}, not {n}.")


def check_stops(stops: Sequence[str]) -> None:
    """Raise UsageError for an empty stop string."""
    if "" in stops:
        raise UsageError("--stop needs at least one character.")
