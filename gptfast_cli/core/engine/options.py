"""Generation options: sampling, length, samples, chat, draft and compilation, shared by all requests that generate."""

from dataclasses import dataclass

from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.ranges import check_at_least, check_samples, check_seed, check_stops
from gptfast_cli.core.engine.sampling import Sampling, check
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Options of one generation.

    max_new_tokens: maximum number of generated tokens for each sample
    stop:           strings before which a sample ends
    ignore_eos:     continue after an end-of-sequence token
    num_samples:    continuations of one prompt
    n_logprobs:     number of alternatives with log-probabilities for each token; None: no log-probabilities
    seed:           of the random draws; None: a random seed, reported in the result
    max_context:    maximum number of tokens, prompt included; None: the model's limit
    batch_size:     maximum number of samples decoded together; None: the job's default
    drafting:       speculative decoding; None: off
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int = 200
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

    def check(self) -> None:
        """Raise UsageError for a value out of its range, before a model is loaded; the error names the option."""
        check(self.sampling)
        check_seed(self.seed)
        check_stops(self.stop)
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
