"""A draft model with the target's vocabulary, which drafts token by token with the target's sampling options."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import PROPOSAL, SamplingContext, distribution, most_probable, sample_inverse_cdf
from gptfast_cli.core.engine.speculative.proposers import Proposal
from gptfast_cli.core.models.decoder import Decoder, Logits


class DraftModel:
    """Drafts with a model; its KV cache holds the accepted text, and `propose` feeds the tokens accepted since."""

    may_be_empty = False

    def __init__(self, model: Decoder, n_rows: int) -> None:
        self.runner = Runner(model, n_rows)
        self._vocab_size = model.config.vocab_size
        self.bytes_per_step = model.weight_bytes - (0 if model.config.tied_embeddings else model.embedding_bytes)

    @property
    def native_runner(self) -> Runner | None:
        return self.runner if self.runner.runs_ahead else None

    def begin(self, row: int, prompt: Sequence[int], n_tokens: int | None = None) -> int:
        n_known = self.runner.reuse_prefix(row, prompt)
        fed = prompt[n_known:] if n_tokens is None else prompt[n_known : n_known + n_tokens]
        for first in range(0, len(fed), PREFILL_CHUNK):
            self.runner.prefill(row, fed[first : first + PREFILL_CHUNK])
        return len(prompt) - n_known - len(fed)

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        draft_length = max(draft_lengths)
        # the cache may end in rejected tokens
        fed = [self.runner.truncate_to(row, context.prompt, context.generated) for row, context in enumerate(contexts)]
        if self.runner.runs_ahead:
            return self._ahead(fed, contexts, draft_lengths)
        return [
            _shortened(*each) for each in zip(self._one_by_one(fed, contexts, draft_length), draft_lengths, strict=True)
        ]

    def move(self, source: int, target: int) -> None:
        self.runner.swap(source, target)

    def _ahead(
        self, fed: list[list[int]], contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]
    ) -> list[Proposal]:
        """Draft all tokens in one native call, without an uncertainty limit."""
        uniforms = [[context.uniform(step, PROPOSAL) for context in contexts] for step in range(max(draft_lengths))]
        needs_probs = not all(context.sampler.sampling.is_greedy for context in contexts)
        chosen = self.runner.run_ahead(fed, contexts, uniforms, keep_logits=needs_probs)
        proposals = []
        for row, (context, draft_length) in enumerate(zip(contexts, draft_lengths, strict=True)):
            drafted = [step[row] for step in chosen.tokens[:draft_length]]
            if self._vocab_size in drafted:  # the draft's output was not finite
                del drafted[drafted.index(self._vocab_size) :]
            tokens = torch.tensor(drafted, dtype=torch.int64)
            logits = None if context.sampler.sampling.is_greedy or not drafted else chosen.logits
            draft_probs = (
                None if logits is None else distribution(Logits(logits[: len(drafted), row]), context, tokens[:-1])
            )
            proposals.append(Proposal(tokens, draft_probs))
        return proposals

    def _one_by_one(
        self, fed: list[list[int]], contexts: Sequence[SamplingContext], draft_length: int
    ) -> list[Proposal]:
        """Draft token by token without a host sync, so without an uncertainty limit."""
        device = self.runner.model.device
        uniforms = to_device(
            [context.uniform(step, PROPOSAL) for context in contexts for step in range(draft_length)],
            widest(device),
            device,
        ).view(len(contexts), draft_length)
        feeding = [to_device(tokens, torch.int64, device) for tokens in fed]
        tokens = [torch.empty(0, dtype=torch.int64, device=device)] * len(contexts)
        draft_probs: list[list[Tensor]] = [[] for _ in contexts]
        needs_probs = not all(context.sampler.sampling.is_greedy for context in contexts)
        for step in range(draft_length):
            logits = self.runner.extend(feeding, needs_probs=needs_probs)
            for row, context in enumerate(contexts):
                last = logits[row].rows(slice(-1, None))
                if context.sampler.sampling.is_greedy:
                    feeding[row] = most_probable(last, context, tokens[row])
                else:
                    draft_probs[row].append(distribution(last, context, tokens[row]).nan_to_num(0))
                    feeding[row] = sample_inverse_cdf(draft_probs[row][-1], uniforms[row, step : step + 1])
                # where the output was not finite, q is 0 and the token is rejected
                feeding[row] = feeding[row].clamp(max=self._vocab_size - 1)
                tokens[row] = torch.cat([tokens[row], feeding[row]])
        return [
            Proposal(own, torch.cat(distribution) if distribution else None)
            for own, distribution in zip(tokens, draft_probs, strict=True)
        ]


def _shortened(proposal: Proposal, draft_length: int) -> Proposal:
    p = proposal.probabilities
    return Proposal(proposal.tokens[:draft_length], None if p is None else p[:draft_length])
