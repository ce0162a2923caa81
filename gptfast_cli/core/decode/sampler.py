"""Choosing the next token of each row, reproducibly: a draw depends on seed, sequence and position alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.sampling import Sampling, penalise, probabilities
from gptfast_cli.core.errors import GptFastError


@dataclass(frozen=True, slots=True)
class DrawKey:
    """What a draw depends on besides the seed."""

    sequence: int
    prompt: Sequence[int]
    generated: Sequence[int]

    @property
    def position(self) -> int:
        """Where the drawn token will stand."""
        return len(self.prompt) + len(self.generated)


class Sampler:
    """Draws tokens under one set of sampling options and one seed."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self.sampling = sampling
        self.seed = seed

    def draw(self, logits: Tensor, keys: Sequence[DrawKey]) -> list[int]:
        """The next token of each row of logits [rows, vocab] float32.

        Raises GptFastError where the logits hold NaN.
        """
        if self.sampling.repetition_penalty != 1:
            logits = penalise(logits, _seen(logits, keys), self.sampling.repetition_penalty)
        if self.sampling.is_greedy:
            return logits.argmax(dim=-1).tolist()  # the lowest of several equals
        uniforms = [uniform(self.seed, key.sequence, key.position) for key in keys]
        tokens: list[int] = _invert(probabilities(logits, self.sampling), uniforms).tolist()
        if max(tokens) == logits.shape[-1]:
            raise GptFastError(
                "The model's output is not a number (NaN).",
                "A wider dtype may help: --dtype float32 or --dtype bfloat16.",
            )
        return tokens


def _invert(p: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The token at which the distribution function of p [rows, vocab] passes each row's uniform number, [rows].

    A token of probability 0 is never taken: its step has no height. NaN gives `vocab`, which is no token.
    """
    # float32 would lose the steps of rare tokens in a sum near 1; one accelerator has nothing wider
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    cumulative = p.to(wide).cumsum(dim=-1)
    thresholds = torch.tensor(uniforms, dtype=wide, device=p.device).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)


def _seen(logits: Tensor, keys: Sequence[DrawKey]) -> Tensor:
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, key in enumerate(keys):
        seen[row, [*key.prompt, *key.generated]] = True
    return seen.to(logits.device)
