"""Choosing the next token of each row, reproducibly: a draw depends on its seed, its stream and its position alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.decode.randomness import TOKEN, uniform
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

    def uniform(self, later: int = 0, purpose: int = TOKEN) -> float:
        """The number in [0, 1) that decides it, or the draw so many tokens later.

        Each seed, stream, position and purpose has its own.
        """
        position = len(self.prompt) + len(self.generated) + later
        return uniform(self.sampler.seed, self.sampler.stream, position, purpose)


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
    uniforms = torch.tensor([draw.uniform() for draw in draws], dtype=torch.float64)
    tokens: list[int] = invert(probabilities(logits, sampling), uniforms).tolist()
    check_tokens(tokens, logits.shape[-1])
    return tokens


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise GptFastError where no token could be chosen, which `vocab_size` stands for."""
    if max(tokens) == vocab_size:
        raise GptFastError(
            "The model's output is not a number (NaN).",
            "A wider dtype may help: --dtype float32 or --dtype bfloat16.",
        )


def invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the distribution function of p [rows, vocab] passes each row's number in [0, 1), [rows].

    p need not sum to 1. A token of probability 0 is never taken: its step has no height. NaN gives `vocab`, which is no
    token.
    """
    # float32 would lose the steps of rare tokens in a sum near 1; one accelerator has nothing wider
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    cumulative = p.to(wide).cumsum(dim=-1)
    thresholds = uniforms.to(p.device, wide).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)


def _seen(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Tokens that each draw has had before it, [rows, vocab] bool."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, draw in enumerate(draws):
        seen[row, [*draw.prompt, *draw.generated]] = True
    return seen.to(logits.device)


def law(logits: Tensor, draw: Draw, drafted: Sequence[int] = ()) -> Tensor:
    """What a draw is from, and those after it, each once the drafted tokens before it have come.

    Logits are [tokens, vocab] float32, of which the first stands for the draw itself; so are the probabilities, which
    are 1 and 0 for a sampling that is greedy.
    """
    logits = _penalised(logits, draw, drafted)
    if draw.sampler.sampling.is_greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return probabilities(logits, draw.sampler.sampling)


def most_probable(logits: Tensor, draw: Draw, drafted: Sequence[int] = ()) -> Tensor:
    """The token with the largest logit in place of each law, [tokens] int64; `vocab` where one is no number."""
    largest, tokens = _penalised(logits, draw, drafted).max(dim=-1)
    return torch.where(largest.isnan(), logits.shape[-1], tokens)


def _penalised(logits: Tensor, draw: Draw, drafted: Sequence[int]) -> Tensor:
    penalty = draw.sampler.sampling.repetition_penalty
    if penalty == 1:
        return logits
    later = [Draw(draw.sampler, draw.prompt, [*draw.generated, *drafted[:n]]) for n in range(len(logits))]
    return penalise(logits, _seen(logits, later), penalty)


def draw_from(p: Tensor, uniform: float) -> int:
    """The token of a law p [1, vocab] that a number in [0, 1) falls on; `vocab` where p is no number."""
    return int(invert(p, torch.tensor([uniform], dtype=torch.float64)))
