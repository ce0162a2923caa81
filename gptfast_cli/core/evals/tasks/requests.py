"""Requests of tasks to a model, their answers, and the options of a task run."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.options import check_at_least
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import NotFoundError, UsageError

_MAX_SIMILAR: Final = 6


def match_tasks(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks that names and patterns match. Raises NotFoundError for one without a match, with similar names."""
    found: dict[str, None] = {}
    for name in names:
        matching = [each for each in known if fnmatchcase(each, name)]
        if not matching:
            raise NotFoundError(
                f"task {name!r} not found.{_similar(name, known)}",
                "--tasks takes all words up to the next option; put MODEL before it, or use -m MODEL.",
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _similar(name: str, known: Sequence[str]) -> str:
    """A sentence with similar names, or an empty string."""
    alike = difflib.get_close_matches(name, known, _MAX_SIMILAR)
    inside = [each for each in known if name and name in each]
    names = list(dict.fromkeys([*alike, *inside]))[:_MAX_SIMILAR]
    return f" Similar: {', '.join(names)}." if names else ""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a task run.

    names:        tasks, groups, or patterns such as mmlu_*; empty: all bundled tasks
    limit:        questions of each task, or their share if below 1; None: all
    n_shots:      few-shot examples; None: as the task says
    include_path: folder of additional tasks in the harness's YAML
    chat:         whether to apply the chat template
    output_path:  folder for results and samples in the harness's layout
    batch_size:   concurrent generations
    seed:         of sampled answers and few-shot examples
    """

    names: tuple[str, ...] = ()
    limit: float | None = None
    n_shots: int | None = None
    include_path: Path | None = None
    chat: ChatOptions = ChatOptions(chat=False)
    output_path: Path | None = None
    batch_size: int = 8
    seed: int = 1234

    def check(self) -> None:
        """Raise UsageError for values out of range."""
        check_at_least(1, {"--batch-size": self.batch_size})
        check_at_least(0, {"--num-fewshot": self.n_shots})
        if self.chat.template is not None and not self.chat.chat:
            raise UsageError("--chat-template requires --chat.")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit % 1)):
            raise UsageError(
                f"--limit {self.limit:g} is not a number of questions.", "Use 100, or 0.1 for a tenth of each task."
            )


GREEDY = Sampling(temperature=0, top_k=0)


@dataclass(frozen=True, slots=True)
class LikelihoodRequest:
    """log p(continuation | context); the context may be empty, a space between them belongs to the continuation."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class RollingRequest:
    """log p(text), each token predicted from as much context as the model can hold."""

    text: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Generate after a prompt, up to the first of `until`.

    sample: distinguishes otherwise equal requests, which are sampled independently
    """

    prompt: str
    until: tuple[str, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    sample: int = 0


TaskRequest: TypeAlias = LikelihoodRequest | RollingRequest | GenerationRequest


@dataclass(frozen=True, slots=True)
class LikelihoodAnswer:
    """Natural log-probability of a continuation, and whether greedy decoding gives exactly it."""

    logprob: float
    is_greedy: bool


Answer: TypeAlias = LikelihoodAnswer | float | str
"""Answer to a LikelihoodRequest, a RollingRequest (log-probability), or a GenerationRequest (text)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer."""

    reason: str


def key_of(request: TaskRequest) -> str:
    """A hash of a request, the same in every run: key of the response cache, and of the sampling stream."""
    kind = type(request).__name__.removesuffix("Request")
    content = json.dumps([kind, asdict(request)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
