"""What a quantised model lost: its next-token distributions beside its original's, on the same texts.

Both go through the texts together, block by block, so that this can be had while a model is being quantised and
larger than the memory. Each text stands for itself, with a beginning-of-sequence token where the model expects one:
across the border of two texts both models would only guess, and alike.
"""

from collections.abc import Mapping, Sequence

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats import Weight, schemes
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.measure.divergence import Comparison, Divergence
from gptfast_cli.core.model.stream import Stream
from gptfast_cli.core.model.weights import assemble_layer

_BLOCK_LOGITS = 1 << 25
"""Logits of a model that are held at once: 128 MB in float32."""


class Fidelity:
    """Takes in both models' blocks, as `weight_blocks` cuts them; the last one gives the result."""

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
        inputs = [text[:-1] for text in texts]
        self._original, self._quantised = (
            Stream(config, inputs, backend=backend, device=device) for _ in ("original", "quantised")
        )
        self._embeddings: tuple[Weight, Weight] | None = None  # which are the heads too, where they are tied

    def add(self, original: Mapping[str, Weight], quantised: Mapping[str, Weight]) -> Divergence | None:
        """Go through the next block; None until it was the last one."""
        first, second = self._placed(original), self._placed(quantised)
        if "embedding" in first:
            self._original.embed(first["embedding"], self._dtype)
            self._quantised.embed(second["embedding"], self._dtype)
            if self._config.tied_embeddings:
                self._embeddings = first["embedding"], second["embedding"]
            return None
        if "norm" in first:
            return self._compare(first, second)
        self._original.layer(assemble_layer(first))
        self._quantised.layer(assemble_layer(second))
        return None

    def _compare(self, original: Mapping[str, Weight], quantised: Mapping[str, Weight]) -> Divergence:
        heads = self._embeddings or (original["head"], quantised["head"])
        n = max(1, _BLOCK_LOGITS // self._config.vocab_size)
        comparison = Comparison()
        reference = self._original.logits(original["norm"], heads[0], block_tokens=n)
        other = self._quantised.logits(quantised["norm"], heads[1], block_tokens=n)
        for targets in torch.split(self._targets, n):  # zip would keep logits while the next ones are made
            comparison.add(next(reference), next(other), targets)
        return comparison.result()

    def _placed(self, block: Mapping[str, Weight]) -> Mapping[str, Weight]:
        """The weights on the device; on a CPU they stay as they are, or a mapped one would be copied."""
        if self._device.type == "cpu":
            return block
        return {name: schemes[weight.scheme].to(weight, self._device, self._dtype) for name, weight in block.items()}
