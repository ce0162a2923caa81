"""KL divergence between two models: of whole texts, or layer by layer while a model is being quantized.

Standard errors are by batch means: the values, in text order, are cut into 20 long batches, whose means are nearly
independent; their spread and Student's t give an interval (Schmeiser 1982, "Batch size effects in the analysis of
simulation output"). Treating tokens as independent would underestimate the error: neighbouring tokens correlate.

With p the reference's distribution at a position and q the other's, at temperature 1 without top-k or top-p:

    KLD   = sum p (log p - log q), in nats
    alpha = sum min(p, q) = 1 - sum |p - q| / 2, the probability that p accepts a token drawn from q
            (Leviathan et al. 2023, arXiv:2211.17192, Corollary 3.6)

With t the text's next token, a position flips if exactly one model has t as its argmax (Dutta et al. 2024,
arXiv:2407.09141); llama.cpp prints the root mean square of q(t) - p(t). Perplexities are compared by paired tokens:
the mean of log p(t) - log q(t) cancels the difficulty of the text that both models share.

Good quantization changes these by less than float32 resolves, so positions are computed in float64. A logit of -inf
excludes its token; if q excludes a token that p does not, KLD is infinite.

BlockwiseKLD needs one layer of each model in memory at a time, plus hidden states [tokens, dim] for each variant. Each
text is fed separately, with a BOS token where the model expects one.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

import torch
from torch import Tensor

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.models.streaming import Stream
from gptfast_cli.core.models.weights import assemble_layer, layer_of
from gptfast_cli.core.schemes import Weight, schemes

N_BATCHES: Final = 20
_T: Final = 2.093
"""Student's t, two-sided 95 %, 19 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class BatchedMean:
    """A mean and its standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> Tensor:
        """The 95 % confidence interval, [2] float64."""
        reach = _T * self.stderr
        return torch.tensor([self.value - reach, self.value + reach], dtype=torch.float64)


def batched_mean(values: Tensor) -> BatchedMean | None:
    """Mean of values [n] float64 in text order; None if there are fewer than N_BATCHES or any is not finite."""
    if len(values) < N_BATCHES or not values.isfinite().all():
        return None
    value = values.mean()
    spread = sum((len(batch) * (batch.mean() - value)) ** 2 for batch in values.tensor_split(N_BATCHES))
    stderr = (spread * N_BATCHES / (N_BATCHES - 1)) ** 0.5 / len(values)
    return BatchedMean(value.item(), float(stderr))


_BLOCK_LOGITS = 2**20
"""8 MB in float64, four times over."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The other model compared with the reference, over `tokens` positions.

    kld_mean, kld_p99, kld_max: nats; p99 by nearest rank
    same_top1:                  0..1, share of positions with the same argmax (lowest id among equals)
    alpha:                      0..1, mean over positions
    ppl_reference, ppl_other:   perplexity, exp of the mean -log p of the text's tokens
    ppl_ratio:                  other ÷ reference; NaN if both are infinite
    ppl_ratio_low, ppl_ratio_high: its 95 % interval by batch means; None if it is undefined
    rms_p_change:               0..1, root mean square of q(t) - p(t)
    flips:                      0..1, share of positions where exactly one argmax is the text's token
    """

    tokens: int
    kld_mean: float
    kld_p99: float
    kld_max: float
    same_top1: float
    alpha: float
    ppl_reference: float
    ppl_other: float
    ppl_ratio: float
    ppl_ratio_low: float | None
    ppl_ratio_high: float | None
    rms_p_change: float
    flips: float

    @property
    def better(self) -> Literal["reference", "other"] | None:
        """The model with the lower perplexity, if the interval excludes 1; else None."""
        if self.ppl_ratio_low is None or self.ppl_ratio_high is None:
            return None
        if self.ppl_ratio_low > 1:
            return "reference"
        return "other" if self.ppl_ratio_high < 1 else None


class Comparison:
    """Accumulates the divergence of two models over pieces of logits.

    block_logits: logits of each model that are computed with at a time, in float64; at least one position's
    """

    def __init__(self, block_logits: int = _BLOCK_LOGITS) -> None:
        self._block_logits = block_logits
        self._values: list[Tensor] = []  # each [positions, 7] float64, as _position_values returns them
        self._places: list[Tensor] = []
        self._n_positions = 0
        self._kld_sum = 0.0

    @property
    def n_positions(self) -> int:
        """Positions so far."""
        return self._n_positions

    @property
    def kld_mean(self) -> float:
        """Mean KLD so far, in nats; NaN before the first position."""
        return self._kld_sum / self._n_positions if self._n_positions else math.nan

    def add(self, reference: Tensor, other: Tensor, targets: Tensor, places: Tensor | None = None) -> None:
        """Add logits [positions, vocab] of both models, of any float dtype, and the next tokens [positions].

        places: [positions] int64, text order of the positions; None if they are added in text order

        Raises UsageError if the vocabulary sizes differ, GptFastError if logits are NaN, +inf or all -inf.
        """
        assert len(reference) == len(other) == len(targets)
        self._check(reference, other)
        n = max(1, self._block_logits // reference.shape[-1])
        device = "cpu" if reference.device.type == "mps" else reference.device  # Metal has no float64
        # allocated once: page faults of new memory cost more than the arithmetic
        room = torch.empty(4, min(n, len(reference)), reference.shape[-1], dtype=torch.float64, device=device)
        blocks = (torch.split(whole, n) for whole in (reference, other, targets))
        for block in zip(*blocks, strict=True):
            p_logits, q_logits, tokens = (part.to(device) for part in block)
            self._values.append(_position_values(p_logits, q_logits, tokens, room=room[:, : len(tokens)]).cpu())
            self._kld_sum += self._values[-1][:, 0].sum().item()
        first = self._n_positions
        self._n_positions += len(targets)
        self._places.append(torch.arange(first, self._n_positions) if places is None else places)

    def result(self) -> Divergence:
        """The divergence over all positions; there must be at least one."""
        assert self._n_positions
        values = torch.cat(self._values)[torch.cat(self._places).argsort(stable=True)]
        kld, alpha, same_top1, is_right, is_right_other, nll_reference, nll_other = values.unbind(dim=-1)
        log_ratio = batched_mean(nll_other - nll_reference)
        ends = [None, None] if log_ratio is None else log_ratio.interval.exp().tolist()
        rank = -(-self._n_positions * 99 // 100)
        return Divergence(
            tokens=self._n_positions,
            kld_mean=kld.mean().item(),
            kld_p99=kld.kthvalue(rank).values.item(),
            kld_max=kld.max().item(),
            same_top1=same_top1.mean().item(),
            alpha=alpha.mean().item(),
            ppl_reference=nll_reference.mean().exp().item(),
            ppl_other=nll_other.mean().exp().item(),
            ppl_ratio=(nll_other.mean() - nll_reference.mean()).exp().item(),
            ppl_ratio_low=ends[0],
            ppl_ratio_high=ends[1],
            rms_p_change=((-nll_other).exp() - (-nll_reference).exp()).square().mean().sqrt().item(),
            flips=(is_right != is_right_other).double().mean().item(),
        )

    def _check(self, reference: Tensor, other: Tensor) -> None:
        assert reference.ndim == other.ndim == 2
        n_reference, n_other = reference.shape[-1], other.shape[-1]
        if n_reference != n_other:
            raise UsageError(
                f"The reference gives logits for {n_reference} tokens and the other model for {n_other}.",
                "Compare models of one vocabulary, padded to the same size.",
            )
        for whose, logits in (("reference", reference), ("other model", other)):
            broken = logits.amax(dim=-1).isfinite().logical_not()  # amax lets NaN through
            if broken.any():
                position = self._n_positions + int(broken.nonzero()[0])
                raise GptFastError(
                    f"The {whose}'s logits at position {position} are NaN, infinite or all ruled out.",
                    "Its weights may be damaged (--verify-weights), or overflow in float16 (--dtype float32).",
                )


def _position_values(reference: Tensor, other: Tensor, targets: Tensor, *, room: Tensor) -> Tensor:
    """[positions, 7]: KLD, alpha, same argmax, p's and q's argmax is the target, -log p and -log q of the target.

    `room` [4, positions, vocab] float64 is scratch memory.
    """
    p, log_p, q, log_q = room
    _distribution(reference, p, log_p)
    _distribution(other, q, log_q)
    nll_p, nll_q = (-logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1) for logprobs in (log_p, log_q))
    top_p, top_q = reference.argmax(dim=-1), other.argmax(dim=-1)
    # 0 log 0 = 0, not NaN; rounding may give slightly negative KLD
    kld = log_p.sub_(log_q).mul_(p).nan_to_num_(nan=0, posinf=torch.inf).sum(dim=-1).clamp(min=0)
    # exactly 1 if p = q, unlike sum min(p, q)
    alpha = (1 - p.sub_(q).abs_().sum(dim=-1) / 2).clamp(min=0)
    return torch.stack([kld, alpha, top_p == top_q, top_p == targets, top_q == targets, nll_p, nll_q], dim=-1)


def _distribution(logits: Tensor, p: Tensor, log_p: Tensor) -> None:
    """Write probabilities and their logarithms, each [positions, vocab] float64."""
    log_p.copy_(logits).sub_(logits.amax(dim=-1, keepdim=True))
    total = torch.exp(log_p, out=p).sum(dim=-1, keepdim=True)
    p.div_(total)
    log_p.sub_(total.log())


_PIECE_LOGITS = 1 << 26
"""Logits in memory at once, of all models together: 256 MB in float32."""

K = TypeVar("K", bound=Hashable)


class BlockwiseKLD(Generic[K]):
    """Divergence of variants of a model from the original, fed with weights block by block (`weight_blocks`).

    A variant is known by a key. It has the original weights in each block that it is given none of its own for, so
    one pass measures a wholly quantized model, or what each layer alone costs in each of several schemes.
    """

    def __init__(
        self,
        config: ModelConfig,
        texts: Sequence[Sequence[int]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        piece_logits: int = _PIECE_LOGITS,
    ) -> None:
        """`texts` are token ids, at least two each."""
        self._config = config
        self._device, self._dtype, self._piece_logits = device, dtype, piece_logits
        self._targets = torch.tensor([token for text in texts for token in text[1:]])
        self._original = Stream(config, [text[:-1] for text in texts], backend=Reference(), device=device)
        self._variants: dict[K, Stream] = {}
        self._embedding: Weight | None = None  # tied: also the head
        self._own_embeddings: dict[K, Weight] = {}

    def add(self, original: Mapping[str, Weight], variants: Mapping[K, Mapping[str, Weight]]) -> dict[K, Divergence]:
        """Compute the next block of the original and of all variants; the divergence of each after the last block."""
        weights = self._placed(original)
        own = {key: self._placed(block) for key, block in variants.items()}
        if "embedding" in weights:
            self._embedding = weights["embedding"]
            self._own_embeddings = {key: block["embedding"] for key, block in own.items()}
            self._original.embed(self._embedding, self._dtype)
        self._variants |= {key: self._original.copy() for key in own if key not in self._variants}
        if "embedding" in weights:
            for key, embedding in self._own_embeddings.items():
                self._variants[key].embed(embedding, self._dtype)
        elif "norm" in weights:
            return self._compare(weights, own)
        else:
            layer, number = assemble_layer(weights), layer_of(next(iter(weights)))
            for key, stream in self._variants.items():
                stream.layer(number, assemble_layer(own[key]) if key in own else layer)
            self._original.layer(number, layer)
        return {}

    def _compare(self, weights: Mapping[str, Weight], own: Mapping[K, Mapping[str, Weight]]) -> dict[K, Divergence]:
        n = max(1, self._piece_logits // (1 + len(self._variants)) // self._config.vocab_size)

        def logits(stream: Stream, block: Mapping[str, Weight], embedding: Weight | None) -> Iterator[Tensor]:
            head = block.get("head", embedding)
            assert head is not None, "the embedding comes first"
            return stream.logits(block["norm"], head, block_tokens=n)

        reference = logits(self._original, weights, self._embedding)
        others = {
            key: logits(stream, own.get(key, weights), self._own_embeddings.get(key, self._embedding))
            for key, stream in self._variants.items()
        }
        comparisons = {key: Comparison() for key in others}
        for targets in torch.split(self._targets, n):
            ours = next(reference)
            for key, comparison in comparisons.items():
                comparison.add(ours, next(others[key]), targets)
            del ours  # before the next piece is computed
        return {key: comparison.result() for key, comparison in comparisons.items()}

    def _placed(self, block: Mapping[str, Weight]) -> Mapping[str, Weight]:
        """The weights on the device; on a CPU unchanged, since memory-mapped weights would be copied."""
        if self._device.type == "cpu":
            return block
        return {name: schemes[weight.scheme].to(weight, self._device, self._dtype) for name, weight in block.items()}
