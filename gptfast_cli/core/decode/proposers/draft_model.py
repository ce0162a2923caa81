"""A smaller model with the target's vocabulary drafts, token by token, under the target's own sampling options."""

from collections.abc import Sequence

import torch

from gptfast_cli.core.decode.proposers import Proposal
from gptfast_cli.core.decode.randomness import PROPOSAL
from gptfast_cli.core.decode.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.decode.sampler import Draw, draw_from, law
from gptfast_cli.core.model.decoder import Decoder


class DraftModel:
    """See Proposer; its rows hold the text that is certain, but for the last tokens, which the next proposal feeds."""

    def __init__(self, model: Decoder, n_rows: int) -> None:
        self.runner = Runner(model, n_rows)
        self.bytes_per_step = model.weight_bytes - (0 if model.config.tied_embeddings else model.embedding_bytes)

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """See Proposer."""
        n_known = self.runner.recall(row, prompt)
        for first in range(n_known, len(prompt), PREFILL_CHUNK):
            self.runner.prefill(row, prompt[first : first + PREFILL_CHUNK])

    def propose(self, draws: Sequence[Draw], depths: Sequence[int]) -> list[Proposal]:
        """See Proposer."""
        depth = max(depths)
        fed = []
        for row, draw in enumerate(draws):
            # what is held may end in tokens that were drafted in vain; a token at least has to be fed
            self.runner.keep(row, len(draw.prompt) + len(draw.generated) - 1)
            fed.append(list(draw.generated[self.runner.n_held(row) - len(draw.prompt) :]))
        if depth == 0:
            return [Proposal([], None)] * len(draws)
        if self.runner.runs_ahead and all(draw.sampler.sampling.repetition_penalty == 1 for draw in draws):
            proposals = self._ahead(fed, draws, depth)
        else:
            proposals = self._one_by_one(fed, draws, depth)
        vocab_size = self.runner.model.config.vocab_size
        return [_shortened(each, own, vocab_size) for each, own in zip(proposals, depths, strict=True)]

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self.runner.move(source, target)

    def _ahead(self, fed: list[list[int]], draws: Sequence[Draw], depth: int) -> list[Proposal]:
        """All of it in one call of a model that chooses by itself."""
        samplings = [draw.sampler.sampling for draw in draws]
        uniforms = [[draw.uniform(step, PROPOSAL) for draw in draws] for step in range(depth)]
        needs_law = not all(sampling.is_greedy for sampling in samplings)
        chosen = self.runner.run_ahead(fed, samplings, uniforms, keep_logits=needs_law)
        proposals = []
        for row, draw in enumerate(draws):
            tokens = [step[row] for step in chosen.tokens]
            logits = None if draw.sampler.sampling.is_greedy else chosen.logits
            proposals.append(Proposal(tokens, None if logits is None else law(logits[:, row], draw, tokens)))
        return proposals

    def _one_by_one(self, fed: list[list[int]], draws: Sequence[Draw], depth: int) -> list[Proposal]:
        tokens: list[list[int]] = [[] for _ in draws]
        laws: list[list[torch.Tensor]] = [[] for _ in draws]
        for step in range(depth):
            logits = self.runner.extend(fed)
            for row, draw in enumerate(draws):
                later = Draw(draw.sampler, draw.prompt, [*draw.generated, *tokens[row]])
                laws[row].append(law(logits[row][-1:], later))
                tokens[row].append(draw_from(laws[row][-1], draw.uniform(step, PROPOSAL)))
            fed = [[min(row[-1], logits[0].shape[-1] - 1)] for row in tokens]
        return [Proposal(*each) for each in zip(tokens, map(torch.cat, laws), strict=True)]


def _shortened(proposal: Proposal, depth: int, vocab_size: int) -> Proposal:
    """What was asked for of a proposal, up to where the draft's output was no number."""
    tokens = proposal.tokens[:depth]
    if vocab_size in tokens:
        del tokens[tokens.index(vocab_size) :]
    p = proposal.probabilities
    return Proposal(tokens, None if p is None else p[: len(tokens)])
