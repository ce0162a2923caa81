"""What ranks choose from logits that each has a part of, and how much they tell one another for it."""

import itertools
from typing import Any

import torch
from torch import Tensor

from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext, draw_tokens, most_probable
from gptfast_cli.core.engine.shapes import read_shape
from gptfast_cli.core.models.decoder import Logits
from gptfast_cli.core.models.process_group import ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard

SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "greedy, penalized": Sampling(temperature=0, repetition_penalty=1.5),
    "the best of equals": Sampling(temperature=1.0, top_k=1),
    "top-k": Sampling(temperature=0.8, top_k=3),
    "top-k of almost all": Sampling(temperature=1.3, top_k=8),
    "top-k, top-p, min-p": Sampling(temperature=1.0, top_k=4, top_p=0.8, min_p=0.1),
    "top-k, penalized": Sampling(temperature=1.0, top_k=3, repetition_penalty=1.5),
    "all": Sampling(temperature=1.0, top_k=0),
    "top-p": Sampling(temperature=1.0, top_k=0, top_p=0.7),
}
N_ROWS = 40
DISTINCT, EQUALS = "distinct", "equals"
VOCABULARIES = (38, 5)  # tokens: neither divides among 4 ranks, and of 5 the last of them has none


class Counting:
    """A collective that counts the numbers that each rank tells the others."""

    def __init__(self, group: ProcessGroup) -> None:
        self._together = group
        self.rank, self.size = group.rank, group.size
        self.n_gathered = 0

    def gather(self, x: Tensor) -> Tensor:
        self.n_gathered += x.numel()
        return self._together.gather(x)


def rows_of_logits(vocab_size: int) -> dict[str, Tensor]:
    """Numbers as they may be, and few different ones, so that the largest stand several times."""
    generator = torch.Generator().manual_seed(vocab_size)
    distinct = torch.randn(N_ROWS, vocab_size, generator=generator) * 3
    equals = torch.randint(-2, 3, (N_ROWS, vocab_size), generator=generator).float()
    equals[::4] = -torch.inf
    equals[::4, vocab_size // 2 :] = 1.0  # those of half of the ranks, none of which has the first
    return {DISTINCT: distinct, EQUALS: equals}


def choices(group: ProcessGroup) -> dict[str, Any]:
    """The tokens of every row by vocabulary, logits and sampling, and how many numbers they took."""
    chosen: dict[str, Any] = {}
    for vocab_size, kind in itertools.product(VOCABULARIES, (DISTINCT, EQUALS)):
        whole = rows_of_logits(vocab_size)[kind]
        config = read_shape(f"layers=1,dim=8,heads=4,ffn=8,vocab={vocab_size}").config
        share = ModelShard(config, group.rank, group.size)
        for name, sampling in SAMPLINGS.items():
            draws = [SamplingContext(Sampler(sampling, 7, row), (row % vocab_size,), [1, 1]) for row in range(N_ROWS)]
            counting = Counting(group)
            logits = Logits(whole[:, share.tokens], share, counting)  # type: ignore[arg-type]  # that part of it
            chosen[f"{name}, {kind} {vocab_size}"] = draw_tokens(logits, draws), counting.n_gathered
        whole[1, -1] = torch.nan
        logits = Logits(whole[:, share.tokens], share, group)
        nothing = torch.empty(0, dtype=torch.int64)
        chosen[f"verified, {kind} {vocab_size}"] = most_probable(logits, draws[0], nothing).tolist(), 0
    return chosen
