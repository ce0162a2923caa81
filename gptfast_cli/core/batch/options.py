"""How a row is to be answered: the command line has the defaults, and each row may have its own."""

from dataclasses import dataclass

from gptfast_cli.core.engine.ranges import check_at_least, check_samples, check_stops
from gptfast_cli.core.engine.sampling import Sampling, check


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What one row asks for.

    n_logprobs: alternatives to tell the log-probabilities of, for each token; None tells none
    seed:       None draws from the run's seed, as the row's place in the file decides
    system:     the system message; None leaves it to the run
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    num_samples: int = 1
    n_logprobs: int | None = None
    seed: int | None = None
    system: str | None = None


def check_defaults(options: AnswerOptions) -> None:
    """Raise UsageError for a default out of range; it names the flag."""
    check(options.sampling)
    check_stops(options.stop)
    check_samples(options.num_samples)
    check_at_least(1, {"--max-new-tokens": options.max_new_tokens})
    check_at_least(0, {"--logprobs": options.n_logprobs})
