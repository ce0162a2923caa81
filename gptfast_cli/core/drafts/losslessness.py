"""Losslessness check: speculation with a draft gives what the target alone gives (`--certify`).

Greedy texts must be equal. With sampling, the third token of many texts of one prompt is counted, which rounds reach in
several ways, with the draft and without. Both counts come from one distribution, so Pearson's statistic for two samples
of equal size, sum((a - b)^2 / (a + b)), has a chi-square distribution.
"""

from collections.abc import Sequence
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
_SECONDS = 15.0  # time budget of the greedy texts, and of the sampled ones
_TOKENS_OF_A_DRAW = 4  # the third one is counted
_LEAST_EXPECTED = 10  # minimum total count of a bin, for the chi-square approximation


@dataclass(frozen=True, slots=True)
class CheckSize:
    """Number of greedy texts, and of sampled texts with the draft and without."""

    n_texts: int = _MANY_TEXTS
    n_draws: int = _MANY_DRAWS

    @classmethod
    def of(cls, token_seconds: float, most: int) -> "CheckSize":
        """The size that fits the time budget, for texts of up to `most` tokens of `token_seconds` each."""
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

    def decode(self, sequences: Sequence[Request]) -> None:
        """Decode all sequences to their ends."""
        speculation = None
        if self.candidate is not None:
            speculation = Speculation(self.candidate.proposer, FixedDraftLength(self.k))
        for step in Engine(self.runner, speculation, isolates_failures=True).generate(sequences):
            result_of(step)


def check_losslessness(
    runner: Runner,
    candidate: DraftCandidate,
    texts: Sequence[TargetText],
    drawn: Sampling,
    size: CheckSize = CheckSize(),
) -> Job[LosslessnessCheck]:
    """Compare greedy texts at several draft lengths, and sampled tokens of one prompt."""
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
        ]  # a failed sequence counts as one more token
        counts.append(torch.bincount(torch.tensor(third), minlength=vocab_size + 1).double())
    statistic, degrees = _difference(*counts)
    p_value = float(torch.special.gammaincc(torch.tensor(degrees / 2).double(), torch.tensor(statistic / 2).double()))
    return LosslessnessCheck(
        candidate.name, n_texts, n_equal, size.n_draws, statistic, degrees, p_value if degrees else 1.0
    )


def _greedy(texts: Sequence[TargetText]) -> list[Request]:
    return [
        Request(n, text.prompt.ids, Sampler(Sampling(temperature=0), 0), Limits(text.most, 1 << 40, frozenset()))
        for n, text in enumerate(texts)
    ]


def _difference(first: torch.Tensor, second: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic of two samples of equal size and its degrees of freedom; rare tokens share one bin."""
    both = first + second
    is_rare = both < _LEAST_EXPECTED
    counts = torch.stack([first, second])
    bins = torch.cat([counts[:, ~is_rare], counts[:, is_rare].sum(dim=1, keepdim=True)], dim=1)
    bins = bins[:, bins.sum(dim=0) > 0]
    a, b = bins
    return float(((a - b) ** 2 / (a + b)).sum()), bins.shape[1] - 1
