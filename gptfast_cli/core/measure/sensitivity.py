"""What a model loses by each layer alone: its KLD when that one layer is stored otherwise and all others as they were.

One pass over the blocks: beside the original's hidden states go those of one model for each layer and way to store it,
which parts from the original at its layer. Memory holds one block and, for each of these, [tokens, dim].
"""

from collections.abc import Mapping, Sequence

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats import Weight, schemes
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.measure.divergence import Comparison
from gptfast_cli.core.model.stream import Stream
from gptfast_cli.core.model.weights import assemble_layer
from gptfast_cli.core.quant.allocation import Storage

_BLOCK_LOGITS = 1 << 22
"""Logits of a model that are held at once: 16 MB in float32."""


class Sensitivity:
    """Takes in a model's blocks, as `weight_blocks` cuts them, and then has the KLD of each layer and storage."""

    def __init__(
        self,
        config: ModelConfig,
        texts: Sequence[Sequence[int]],
        *,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`texts` are token ids, two or more each; the numbers are of every position that has a next token."""
        self._config = config
        self._device, self._dtype = device, dtype
        self._targets = torch.tensor([token for text in texts for token in text[1:]])
        self._original = Stream(config, [text[:-1] for text in texts], backend=backend, device=device)
        self._others: dict[tuple[int, Storage], Stream] = {}
        self._embedding: Weight | None = None  # which is the head too, where they are tied

    def embed(self, embedding: Weight) -> None:
        """Begin with the embedding."""
        self._embedding = self._placed(embedding)
        self._original.embed(self._embedding, self._dtype)

    def layer(self, number: int, block: Mapping[str, Weight], stored: Mapping[Storage, Mapping[str, Weight]]) -> None:
        """Go through the next layer, and once for each way to store it; its weights then are in `stored`."""
        weights = assemble_layer({name: self._placed(weight) for name, weight in block.items()})
        for other in self._others.values():
            other.layer(weights)
        for storage, otherwise in stored.items():
            other = self._others[number, storage] = self._original.copy()
            other.layer(assemble_layer({name: self._placed(weight) for name, weight in otherwise.items()}))
        self._original.layer(weights)

    def klds(self, ends: Mapping[str, Weight]) -> dict[tuple[int, Storage], float]:
        """Mean KLD in nats by layer and storage, from the last block: the norm, and the head unless it is tied."""
        norm, head = self._placed(ends["norm"]), self._embedding
        if "head" in ends:
            head = self._placed(ends["head"])
        assert head is not None, "embed comes first"
        n = max(1, _BLOCK_LOGITS // self._config.vocab_size)
        comparisons = {key: Comparison() for key in self._others}
        others = {key: other.logits(norm, head, block_tokens=n) for key, other in self._others.items()}
        reference = self._original.logits(norm, head, block_tokens=n)
        for logits, targets in zip(reference, torch.split(self._targets, n), strict=True):
            for key, comparison in comparisons.items():
                comparison.add(logits, next(others[key]), targets)
        return {key: comparison.result().kld_mean for key, comparison in comparisons.items()}

    def _placed(self, weight: Weight) -> Weight:
        """The weight on the device; on a CPU it stays as it is, or a mapped one would be copied."""
        return weight if self._device.type == "cpu" else schemes[weight.scheme].to(weight, self._device, self._dtype)
