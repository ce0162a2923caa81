"""Requests that tasks put to a model, and the options of a run of tasks."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.ranges import check_at_least
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import NotFoundError, UsageError

_MOST_NEIGHBOURS: Final = 6


def resolved_task(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks that names and patterns stand for; raises NotFoundError for one that is none, with those near it."""
    found: dict[str, None] = {}
    for name in names:
        matching = [each for each in known if fnmatchcase(each, name)]
        if not matching:
            raise NotFoundError(
                f"There is no task called {name!r}.{_neighbours(name, known)}",
                "--tasks takes all words up to the next option; a MODEL stands before it, or behind -m.",
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _neighbours(name: str, known: Sequence[str]) -> str:
    """A sentence with the names that are like it, or nothing."""
    alike = difflib.get_close_matches(name, known, _MOST_NEIGHBOURS)
    inside = [each for each in known if name and name in each]
    names = list(dict.fromkeys([*alike, *inside]))[:_MOST_NEIGHBOURS]
    return f" Near it: {', '.join(names)}." if names else ""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What to ask.

    names:        tasks, groups of them, or patterns such as mmlu_*; none stands for all bundled ones
    limit:        questions of each task, or below 1 their share; None is all
    n_shots:      solved examples before each question; None is what the task says
    include_path: a folder of further tasks, in the harness's YAML
    chat:         whether questions are put as messages; a task's own text is plain, so None is not
    output_path:  a folder for the results and every sample, as the harness lays them out
    batch_size:   answers generated side by side
    seed:         of sampled answers, and of examples that are drawn
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
        """Raise UsageError for whatever is out of its range."""
        check_at_least(1, {"--batch-size": self.batch_size})
        check_at_least(0, {"--num-fewshot": self.n_shots})
        if self.chat.template is not None and not self.chat.chat:
            raise UsageError("--chat-template needs a chat.", "Add --chat.")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit % 1)):
            raise UsageError(
                f"--limit {self.limit:g} is no number of questions.", "Give 100, or 0.1 for a tenth of each task."
            )


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
class GenerationRequest:
    """What a model says after a prompt, up to the first of `until`.

    sample: tells apart requests that are otherwise the same, whose answers are drawn independently
    """

    prompt: str
    until: tuple[str, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    sample: int = 0


TaskRequest: TypeAlias = Likelihood | Rolling | GenerationRequest


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


def key_of(request: TaskRequest) -> str:
    """A hash of a request, the same in every run."""
    content = json.dumps([type(request).__name__, asdict(request)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
