"""What each layer costs alone is what fidelity says of a model in which nothing else is quantized."""

import pytest
import torch

from evals.test_fidelity import some_texts, weights_of
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.evals.divergence import BlockwiseKLD
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_blocks
from gptfast_cli.core.quantize.allocation import Storage
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized
from llama_oracle import SHAPES, random_llama

CPU = torch.device("cpu")
STORAGES = [Storage("int8"), Storage("int4", 32)]


def stored(block: dict[str, Weight], storage: Storage) -> dict[str, Weight]:
    def one(weight: Weight) -> Weight:
        if len(weight.shape) == 1:
            return weight
        return quantizers["nearest"].quantize(weight.parts["weight"], quantized(storage.scheme), storage.group_size)

    return {name: one(weight) for name, weight in block.items()}


def by_fidelity(config: ModelConfig, weights: dict[str, Weight], layer: int, storage: Storage) -> float:
    fidelity = BlockwiseKLD[None](config, some_texts(config.vocab_size), device=CPU, dtype=torch.float32)
    for number, names in enumerate(weight_blocks(config)):
        block = {name: weights[name] for name in names}
        found = fidelity.add(block, {None: stored(block, storage) if number == layer + 1 else block})
    return found[None].kld_mean


@pytest.mark.parametrize("shape", ["llama-2", "llama-3.2"])
def test_each_layer_costs_what_fidelity_says_of_it_alone(shape: str) -> None:
    model = random_llama(**SHAPES[shape])
    config, weights = families["llama"].config(model.config.to_dict()), weights_of(model)
    kld = BlockwiseKLD[tuple[int, Storage]](config, some_texts(config.vocab_size), device=CPU, dtype=torch.float32)
    for number, names in enumerate(weight_blocks(config)):
        block = {name: weights[name] for name in names}
        is_layer = 1 <= number <= config.n_layers
        found = kld.add(block, {(number - 1, each): stored(block, each) for each in STORAGES if is_layer})
    klds = {key: divergence.kld_mean for key, divergence in found.items()}
    assert set(klds) == {(layer, storage) for layer in range(config.n_layers) for storage in STORAGES}
    for (layer, storage), kld in klds.items():
        assert kld == pytest.approx(by_fidelity(config, weights, layer, storage), rel=1e-6)
        assert kld > 0
    assert all(klds[layer, STORAGES[0]] < klds[layer, STORAGES[1]] for layer in range(config.n_layers))
