"""Inputs that calibration records for a matrix equal those of transformers, behind matrices as they became."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families.random_models import FIRST_CASES, random_model, weights_of
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_blocks
from gptfast_cli.core.quantize.calibration import Calibration
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import random_llama

CPU = torch.device("cpu")


def texts(vocab_size: int) -> list[list[int]]:
    """Of different lengths, some of the same, so that they go in several batches."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 40, 40, 17, 133, 17]
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def blocks_of(model: PreTrainedModel, family: str = "llama") -> tuple[ModelConfig, list[dict[str, Weight]]]:
    config, weights = weights_of(families[family], model)
    copies = {name: plain(weight.parts["weight"].clone()) for name, weight in weights.items()}
    return config, [{name: copies[name] for name in block} for block in weight_blocks(config)]


def small(weight: Weight) -> Weight:
    (matrix,) = weight.parts.values()
    return quantizers["nearest"].quantize(matrix, quantized("int4"), 32)


def dense(weight: Weight) -> Tensor:
    return schemes[weight.scheme].dense(weight, torch.float32)


def modules_of(model: PreTrainedModel, tensors: tuple[str, ...]) -> list[torch.nn.Module]:
    return [model.get_submodule(tensor.removesuffix(".weight")) for tensor in tensors]


def put(model: PreTrainedModel, tensors: tuple[str, ...], matrix: Tensor) -> None:
    """Put a matrix of ours in its place in a transformers model."""
    modules = modules_of(model, tensors)
    for module, rows in zip(modules, matrix.split([module.weight.shape[0] for module in modules]), strict=True):
        module.weight.data = rows.clone()


@torch.inference_mode()
def moments_in(model: PreTrainedModel, tensors: tuple[str, ...], tokens: list[list[int]]) -> Tensor:
    """The mean of x x^T in float64, x what transformers gives the module in every text by itself."""
    seen: list[Tensor] = []
    module, *_ = modules_of(model, tensors)
    hook = module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].flatten(0, 1).double()))
    for text in tokens:
        model(input_ids=torch.tensor([text]))
    hook.remove()
    x = torch.cat(seen)
    return x.t() @ x / len(x)


@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_inputs_are_those_of_transformers_with_everything_before_them_quantized(family: str, case: str) -> None:
    model = random_model(family, case)
    config, blocks = blocks_of(model, family)
    sources = families[family].sources(config)
    tokens = texts(config.vocab_size)
    calibration = Calibration(config, tokens, device=CPU, dtype=torch.float32)
    for block in blocks[:-1]:
        calibration.enter(block)
        for full_name, weight in block.items():
            if len(weight.shape) == 1:
                continue
            inputs = calibration.inputs(full_name)
            becomes = small(weight)
            if full_name == "embedding":
                assert inputs is None
                model.get_submodule("model.embed_tokens").weight.data = dense(becomes)
            else:
                assert inputs is not None
                assert inputs.n_tokens == sum(map(len, tokens))
                expected = moments_in(model, sources[full_name], tokens)
                torch.testing.assert_close(inputs.moments.double(), expected, rtol=1e-4, atol=1e-5)
                assert torch.equal(inputs.moments, inputs.moments.t())
                put(model, sources[full_name], dense(becomes))
            calibration.replace(full_name, becomes)
        calibration.leave()
    calibration.enter(blocks[-1])
    assert all(calibration.inputs(name) is None for name in blocks[-1])


def test_layers_that_are_finished_are_gone_through_to_the_same_bits() -> None:
    """As a run does that goes on after another one: no inputs are asked for there."""
    config, blocks = blocks_of(random_llama())
    tokens = texts(config.vocab_size)
    moments = []
    for is_resumed in (False, True):
        calibration = Calibration(config, tokens, device=CPU, dtype=torch.float32)
        for block in blocks[:3]:
            finished = {name: weight if len(weight.shape) == 1 else small(weight) for name, weight in block.items()}
            calibration.enter(finished if is_resumed else block)
            if not is_resumed:
                for name, weight in finished.items():
                    if len(weight.shape) == 2:
                        calibration.inputs(name)
                        calibration.replace(name, weight)
            calibration.leave()
        calibration.enter(blocks[3])
        inputs = calibration.inputs("layers.2.qkv")
        assert inputs is not None
        moments.append(inputs.moments)
    assert torch.equal(*moments)


def test_a_matrix_that_stays_as_it_is_need_not_be_asked_for() -> None:
    config, blocks = blocks_of(random_llama())
    tokens = texts(config.vocab_size)
    found = []
    for asked in (("qkv", "attention_output", "gate_up", "down"), ("down",)):
        calibration = Calibration(config, tokens, device=CPU, dtype=torch.float32)
        for block in blocks[:2]:
            calibration.enter(block)
            if "embedding" in block:
                calibration.leave()
        found.append([calibration.inputs(f"layers.0.{name}") for name in asked][-1])
    assert found[0] is not None and found[1] is not None
    assert torch.equal(found[0].moments, found[1].moments)


def held_bytes() -> int:
    """Bytes of all tensors that something still refers to, but for frozen ones."""
    storages = [each.untyped_storage() for each in gc.get_objects() if type(each) is Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.fixture
def _frozen() -> Iterator[None]:
    """What is there before a test is left out of its counts, and takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
def test_activations_are_held_once_and_the_heads_of_a_layer_until_they_are_joined() -> None:
    config, blocks = blocks_of(random_llama(vocab_size=40))
    before = held_bytes()
    calibration = Calibration(config, [list(range(40)) * 3] * 40, device=CPU, dtype=torch.float32)
    states = 40 * 120 * config.dim * 4  # bytes; those of the heads are as many
    calibration.enter(blocks[0])
    calibration.leave()
    places = []
    for layer, block in enumerate(blocks[1:3]):
        calibration.enter(block)
        for name, n_held in {"qkv": 2, "attention_output": 2, "gate_up": 1, "down": 1}.items():
            assert calibration.inputs(f"layers.{layer}.{name}") is not None
            assert held_bytes() - before == pytest.approx(n_held * states, rel=0.2)
        calibration.leave()
        places.append([batch.x.data_ptr() for batch in calibration._stream._batches])
    assert places[0] == places[1]
    calibration.enter(blocks[-1])
    assert held_bytes() - before < 0.2 * states


def test_moments_are_held_by_who_asked_for_them_alone() -> None:
    config, blocks = blocks_of(random_llama())
    calibration = Calibration(config, texts(config.vocab_size), device=CPU, dtype=torch.float32)
    for block in blocks[:2]:
        calibration.enter(block)
        if "embedding" in block:
            calibration.leave()
    inputs = calibration.inputs("layers.0.qkv")
    assert inputs is not None
    moments = weakref.ref(inputs.moments)
    del inputs
    assert moments() is None
