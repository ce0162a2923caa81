"""A quick look whether speculation gives what the target alone gives, on the very pair that is judged.

Where tokens are not drawn, texts have to be equal. Where they are, the third tokens of many texts of one prompt are
counted, which a round has reached in one of several ways: with a draft and without, both counts are of one law, and
Pearson's statistic of their difference has a chi-square distribution (two samples of one size).
"""

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from gptfast_cli.core.drafts.candidates import DraftCandidate
from gptfast_cli.core.drafts.report import LosslessnessCheck
from gptfast_cli.core.drafts.texts import TargetText
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.events import Job, Progress, result_of

_DRAFT_LENGTHS = (1, 3, 5)
_FEW_TEXTS, _MANY_TEXTS = 4, 20
_FEW_DRAWS, _MANY_DRAWS = 400, 2000
_SECONDS = 15.0  # for the texts, and for the draws: as many of them as that is enough for
_TOKENS_OF_A_DRAW = 4  # of which the third is counted
_LEAST_EXPECTED = 10  # counts of a token, both together, for the law of the statistic to hold


@dataclass(frozen=True, slots=True)
class CheckSize:
    """How much is tried: greedy texts, and texts that are drawn with a draft and without."""

    n_texts: int = _MANY_TEXTS
    n_draws: int = _MANY_DRAWS

    @classmethod
    def of(cls, token_seconds: float, most: int) -> "CheckSize":
        """What is quick, where a token takes so long and a text has up to so many of them."""
        n_runs = 1 + len(_DRAFT_LENGTHS)
        n_texts = int(_SECONDS / (n_runs * most * token_seconds))
        n_draws = int(_SECONDS / (2 * _TOKENS_OF_A_DRAW * token_seconds))
        return cls(
            min(max(n_texts, _FEW_TEXTS), _MANY_TEXTS),
            min(max(n_draws, _FEW_DRAWS), _MANY_DRAWS),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    runner: Runner
    candidate: DraftCandidate | None
    k: int = 0

    def decode(self, sequences: Rows[Request]) -> None:
        """Decode to their ends, as many side by side as there are rows."""
        speculation = None
        if self.candidate is not None:
            speculation = Speculation(self.candidate.proposer, FixedDraftLength(self.k))
        generator, waiting = Engine(self.runner, speculation, isolates_failures=True), deque(sequences)
        while waiting or generator.active:
            while waiting and generator.has_room:
                result_of(generator.admit(waiting.popleft()))
            if generator.active:
                result_of(generator.step())


def check_losslessness(
    runner: Runner, candidate: DraftCandidate, texts: Rows[TargetText], drawn: Sampling, size: CheckSize = CheckSize()
) -> Job[LosslessnessCheck]:
    """Try it: greedily on some of the texts at several depths, and by many draws for one prompt."""
    chosen, n_equal, n_texts = texts[: size.n_texts], 0, 0
    alone = _greedy(chosen)
    _Run(runner, None).decode(alone)
    for n, k in enumerate(_DRAFT_LENGTHS):
        yield Progress(f"certify {candidate.name}", n, len(_DRAFT_LENGTHS) + 2, "runs")
        group = _greedy(chosen)
        _Run(runner, candidate, k).decode(group)
        n_texts += len(group)
        n_equal += sum(a.generated == b.generated for a, b in zip(alone, group, strict=True))
    counts = []
    for n, who in enumerate((None, candidate)):
        yield Progress(f"certify {candidate.name}", len(_DRAFT_LENGTHS) + n, len(_DRAFT_LENGTHS) + 2, "runs")
        limits = Limits(_TOKENS_OF_A_DRAW, 1 << 40, frozenset())
        draws = [Request(i, texts[0].prompt.ids, Sampler(drawn, n, i), limits) for i in range(size.n_draws)]
        _Run(runner, who, 2).decode(draws)
        vocab_size = runner.model.config.vocab_size
        third = [
            each.generated[2] if each.failure is None else vocab_size for each in draws
        ]  # of those that failed too
        counts.append(torch.bincount(torch.tensor(third), minlength=vocab_size + 1).double())
    statistic, degrees = _difference(*counts)
    p_value = float(torch.special.gammaincc(torch.tensor(degrees / 2).double(), torch.tensor(statistic / 2).double()))
    return LosslessnessCheck(
        candidate.name, n_texts, n_equal, size.n_draws, statistic, degrees, p_value if degrees else 1.0
    )


def _greedy(texts: Rows[TargetText]) -> list[Request]:
    return [
        Request(n, text.prompt.ids, Sampler(Sampling(temperature=0), 0), Limits(text.most, 1 << 40, frozenset()))
        for n, text in enumerate(texts)
    ]


def _difference(first: torch.Tensor, second: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic of two samples of one size, and its degrees of freedom; rare tokens are counted together."""
    both = first + second
    is_rare = both < _LEAST_EXPECTED
    counts = torch.stack([first, second])
    bins = torch.cat([counts[:, ~is_rare], counts[:, is_rare].sum(dim=1, keepdim=True)], dim=1)
    bins = bins[:, bins.sum(dim=0) > 0]
    a, b = bins
    return float(((a - b) ** 2 / (a + b)).sum()), bins.shape[1] - 1
