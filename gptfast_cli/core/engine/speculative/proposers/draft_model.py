"""A smaller model with the target's vocabulary drafts, token by token, under the target's own sampling options."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import (
    PROPOSAL,
    SamplingContext,
    distribution,
    most_probable,
    sample_inverse_cdf,
)
from gptfast_cli.core.engine.speculative.proposers import Proposal
from gptfast_cli.core.models.decoder import Decoder, Logits


class DraftModel:
    """See Proposer; its rows hold the text that is certain, but for the last tokens, which the next proposal feeds."""

    def __init__(self, model: Decoder, n_rows: int) -> None:
        self.runner = Runner(model, n_rows)
        self._vocab_size = model.config.vocab_size
        self.bytes_per_step = model.weight_bytes - (0 if model.config.tied_embeddings else model.embedding_bytes)

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """See Proposer."""
        n_known = self.runner.reuse_prefix(row, prompt)
        for first in range(n_known, len(prompt), PREFILL_CHUNK):
            self.runner.prefill(row, prompt[first : first + PREFILL_CHUNK])

    def propose(self, draws: Sequence[SamplingContext], depths: Sequence[int]) -> list[Proposal]:
        """See Proposer."""
        depth = max(depths)
        # what is held may end in tokens that were drafted in vain
        fed = [self.runner.truncate_to(row, draw.prompt, draw.generated) for row, draw in enumerate(draws)]
        if self.runner.runs_ahead and all(draw.sampler.sampling.repetition_penalty == 1 for draw in draws):
            return self._ahead(fed, draws, depths)
        return [_shortened(*each) for each in zip(self._one_by_one(fed, draws, depth), depths, strict=True)]

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self.runner.move(source, target)

    def _ahead(self, fed: list[list[int]], draws: Sequence[SamplingContext], depths: Sequence[int]) -> list[Proposal]:
        """All of it in one call of a model that chooses by itself; it never ends for doubt."""
        samplings = [draw.sampler.sampling for draw in draws]
        uniforms = [[draw.uniform(step, PROPOSAL) for draw in draws] for step in range(max(depths))]
        needs_law = not all(sampling.is_greedy for sampling in samplings)
        chosen = self.runner.run_ahead(fed, samplings, uniforms, keep_logits=needs_law)
        proposals = []
        for row, (draw, depth) in enumerate(zip(draws, depths, strict=True)):
            drafted = [step[row] for step in chosen.tokens[:depth]]
            if self._vocab_size in drafted:  # the draft's output was no number
                del drafted[drafted.index(self._vocab_size) :]
            tokens = torch.tensor(drafted, dtype=torch.int64)
            logits = None if draw.sampler.sampling.is_greedy or not drafted else chosen.logits
            laws = None if logits is None else distribution(Logits(logits[: len(drafted), row]), draw, tokens[:-1])
            proposals.append(Proposal(tokens, laws))
        return proposals

    def _one_by_one(self, fed: list[list[int]], draws: Sequence[SamplingContext], depth: int) -> list[Proposal]:
        """Token by token, none of which leaves the device; nor does a doubt, so that none ends a round."""
        device = self.runner.model.device
        uniforms = to_device(
            [draw.uniform(step, PROPOSAL) for draw in draws for step in range(depth)], widest(device), device
        ).view(len(draws), depth)
        feeding = [to_device(tokens, torch.int64, device) for tokens in fed]
        tokens = [torch.empty(0, dtype=torch.int64, device=device)] * len(draws)
        laws: list[list[Tensor]] = [[] for _ in draws]
        needs_laws = not all(draw.sampler.sampling.is_greedy for draw in draws)
        for step in range(depth):
            logits = self.runner.extend(feeding, needs_laws=needs_laws)
            for row, draw in enumerate(draws):
                last = logits[row].rows(slice(-1, None))
                if draw.sampler.sampling.is_greedy:
                    feeding[row] = most_probable(last, draw, tokens[row])
                else:
                    laws[row].append(distribution(last, draw, tokens[row]).nan_to_num(0))
                    feeding[row] = sample_inverse_cdf(laws[row][-1], uniforms[row, step : step + 1])
                # where the output was no number, any token will do: it is not accepted
                feeding[row] = feeding[row].clamp(max=self._vocab_size - 1)
                tokens[row] = torch.cat([tokens[row], feeding[row]])
        return [
            Proposal(own, torch.cat(distribution) if distribution else None)
            for own, distribution in zip(tokens, laws, strict=True)
        ]


def _shortened(proposal: Proposal, depth: int) -> Proposal:
    p = proposal.probabilities
    return Proposal(proposal.tokens[:depth], None if p is None else p[:depth])
