"""Choosing the next token of each row, reproducibly: a draw depends on its seed, its stream and its position alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.decode.randomness import TOKEN, uniform
from gptfast_cli.core.decode.sampling import Sampling, penalise, probabilities
from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.model.logits import Logits


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the tokens of one sequence are drawn; `stream` tells sequences of one seed apart."""

    sampling: Sampling
    seed: int
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """The next draw of a sequence, and the tokens before it."""

    sampler: Sampler
    prompt: Sequence[int]
    generated: Sequence[int]

    def uniform(self, later: int = 0, purpose: int = TOKEN) -> float:
        """The number in [0, 1) that decides it, or the draw so many tokens later.

        Each seed, stream, position and purpose has its own.
        """
        position = len(self.prompt) + len(self.generated) + later
        return uniform(self.sampler.seed, self.sampler.stream, position, purpose)


def draw_tokens(logits: Logits, draws: Sequence[Draw]) -> list[int]:
    """A token for each row of logits, each row by its own sampler; the same on all ranks.

    It is `vocab_size`, which is no token, where the logits are not finite.
    """
    rows_by_sampling: dict[Sampling, list[int]] = {}
    for row, draw in enumerate(draws):
        rows_by_sampling.setdefault(draw.sampler.sampling, []).append(row)
    if len(rows_by_sampling) == 1:
        return _draw_alike(logits, draws, draws[0].sampler.sampling)
    tokens = [-1] * len(draws)
    for sampling, rows in rows_by_sampling.items():
        drawn = _draw_alike(logits.rows(rows), [draws[row] for row in rows], sampling)
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens


def _draw_alike(logits: Logits, draws: Sequence[Draw], sampling: Sampling) -> list[int]:
    if sampling.repetition_penalty != 1:
        logits = _penalised(logits, _seen(logits, draws), sampling.repetition_penalty)
    chosen = logits.best() if sampling.is_greedy else _drawn(logits, draws, sampling)
    return list(chosen.tolist())


def _drawn(logits: Logits, draws: Sequence[Draw], sampling: Sampling) -> Tensor:
    """The tokens that the numbers of these draws stand for, [rows] int64."""
    device = logits.own.device
    uniforms = to_device([draw.uniform() for draw in draws], widest(device), device)
    candidates = logits.largest(sampling.top_k) if sampling.top_k else None
    if candidates is None:
        return invert(probabilities(logits.whole, sampling), uniforms)
    values, tokens = candidates
    place = invert(probabilities(values, sampling), uniforms).unsqueeze(-1)
    return F.pad(tokens, (0, 1), value=logits.vocab_size).gather(-1, place).squeeze(-1)  # behind them: no token


def invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the distribution function of p [rows, vocab] passes each row's number in [0, 1), [rows].

    p need not sum to 1. A token of probability 0 is never taken: its step has no height. NaN gives `vocab`, which is no
    token.
    """
    cumulative = p.to(widest(p.device)).cumsum(dim=-1)  # float32 would lose the steps of rare tokens in a sum near 1
    thresholds = uniforms.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)


def law(logits: Logits, draw: Draw, drafted: Tensor) -> Tensor:
    """What drawn tokens are from as others are drafted [drafted] int64 after those of a draw, [tokens, vocab] float32.

    Of so many rows are the logits, the last of them after all drafted tokens, the one before it after all but one.
    """
    return probabilities(_as_drafted(logits, draw, drafted).whole, draw.sampler.sampling)


def most_probable(logits: Logits, draw: Draw, drafted: Tensor) -> Tensor:
    """The token with the largest logit in place of each law, [tokens] int64; `vocab` where one is no number."""
    return _as_drafted(logits, draw, drafted).best()


def _as_drafted(logits: Logits, draw: Draw, drafted: Tensor) -> Logits:
    penalty = draw.sampler.sampling.repetition_penalty
    if penalty == 1:
        return logits
    seen = torch.zeros(len(drafted) + 1, logits.vocab_size, device=logits.own.device)
    seen[1:].scatter_(1, drafted.unsqueeze(-1), 1.0)
    after = seen.cumsum(dim=0)[-len(logits.own) :] > 0  # the tokens drafted before each
    return _penalised(logits, after | _seen(logits, [draw]), penalty)


def _seen(logits: Logits, draws: Sequence[Draw]) -> Tensor:
    """Tokens that each draw has had before it, [draws, vocab] bool."""
    device = logits.own.device
    seen = torch.zeros(len(draws), logits.vocab_size, dtype=torch.bool, device=device)
    for row, draw in enumerate(draws):
        seen[row].index_fill_(0, to_device([*draw.prompt, *draw.generated], torch.int64, device), 1)
    return seen


def _penalised(logits: Logits, seen: Tensor, penalty: float) -> Logits:
    """Each rank's own logits as `seen` [rows, vocab] bool makes them less likely."""
    return replace(logits, own=penalise(logits.own, seen[:, logits.tokens], penalty))
