"""Choosing the next token of each row, reproducibly: a draw depends on its seed, its stream and its position alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.sampling import Sampling, penalise, probabilities
from gptfast_cli.core.errors import GptFastError


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

    def uniform(self, later: int = 0) -> float:
        """The number in [0, 1) that decides it, or the draw so many tokens later.

        Each seed, stream and position has its own.
        """
        return uniform(self.sampler.seed, self.sampler.stream, len(self.prompt) + len(self.generated) + later)


def draw_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """A token for each row of logits [rows, vocab] float32, each row by its own sampler.

    Raises GptFastError where the logits hold NaN.
    """
    rows_by_sampling: dict[Sampling, list[int]] = {}
    for row, draw in enumerate(draws):
        rows_by_sampling.setdefault(draw.sampler.sampling, []).append(row)
    if len(rows_by_sampling) == 1:
        return _draw_alike(logits, draws, draws[0].sampler.sampling)
    tokens = [-1] * len(draws)
    for sampling, rows in rows_by_sampling.items():
        drawn = _draw_alike(logits[rows], [draws[row] for row in rows], sampling)
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens


def _draw_alike(logits: Tensor, draws: Sequence[Draw], sampling: Sampling) -> list[int]:
    if sampling.repetition_penalty != 1:
        logits = penalise(logits, _seen(logits, draws), sampling.repetition_penalty)
    if sampling.is_greedy:
        return logits.argmax(dim=-1).tolist()  # the lowest of several equals
    tokens: list[int] = _invert(probabilities(logits, sampling), [draw.uniform() for draw in draws]).tolist()
    check_tokens(tokens, logits.shape[-1])
    return tokens


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise GptFastError where no token could be chosen, which `vocab_size` stands for."""
    if max(tokens) == vocab_size:
        raise GptFastError(
            "The model's output is not a number (NaN).",
            "A wider dtype may help: --dtype float32 or --dtype bfloat16.",
        )


def _invert(p: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The token at which the distribution function of p [rows, vocab] passes each row's uniform number, [rows].

    A token of probability 0 is never taken: its step has no height. NaN gives `vocab`, which is no token.
    """
    # float32 would lose the steps of rare tokens in a sum near 1; one accelerator has nothing wider
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    cumulative = p.to(wide).cumsum(dim=-1)
    thresholds = torch.tensor(uniforms, dtype=wide, device=p.device).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)


def _seen(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, draw in enumerate(draws):
        seen[row, [*draw.prompt, *draw.generated]] = True
    return seen.to(logits.device)
