"""What a task asks of a model: the probability of a continuation or of a text, or an answer in its own words."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TypeAlias

from gptfast_cli.core.decode.sampling import Sampling

GREEDY = Sampling(temperature=0, top_k=0)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How probable a continuation is behind a context, which may be empty; a space between them is the former's."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Rolling:
    """How probable a whole text is, each token from as much before it as the model can hold."""

    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model says after a prompt, up to the first of `until`.

    sample: tells apart requests that are otherwise the same, whose answers are drawn independently
    """

    prompt: str
    until: tuple[str, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    sample: int = 0


Request: TypeAlias = Likelihood | Rolling | Generation


@dataclass(frozen=True, slots=True)
class LikelihoodAnswer:
    """Natural logarithm of a continuation's probability, and whether greedy decoding would have said just this."""

    logprob: float
    is_greedy: bool


Answer: TypeAlias = LikelihoodAnswer | float | str
"""Of a Likelihood, a Rolling (its logarithm) and a Generation (its text)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer."""

    reason: str


def key_of(request: Request) -> str:
    """A hash of a request, the same in every run."""
    content = json.dumps([type(request).__name__, asdict(request)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
