"""A decoder over quantized weights: the same numbers as over the dequantized ones, and in any company."""

import pytest
import torch

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.families import families
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_shapes
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import greedy, logits, ours, random_llama
from quantized_cases import CASES

pytestmark = pytest.mark.usefixtures("no_gradients")


def pair(name: str, group_size: int | None, *, tied: bool = False) -> tuple[Transformer, Transformer]:
    """A model with int8 embeddings and head and its layers in a scheme, and one over the same weights dequantized.

    No dimension of it is a multiple of a group.
    """
    model = random_llama(tie_word_embeddings=tied)
    family = families["llama"]
    config = family.config(model.config.to_dict())
    sources, tensors = family.sources(config), model.state_dict()
    small: dict[str, Weight] = {}
    for weight_name, shape in weight_shapes(config).items():
        tensor = torch.cat([tensors[source] for source in sources[weight_name]])
        if len(shape) == 1:
            small[weight_name] = plain(tensor)
        elif weight_name in ("embedding", "head"):
            small[weight_name] = quantizers["nearest"].quantize(tensor, quantized("int8"), None)
        else:
            small[weight_name] = quantizers["nearest"].quantize(tensor, quantized(name), group_size)
    large = {key: plain(schemes[weight.scheme].dense(weight, torch.float32)) for key, weight in small.items()}

    def over(weights: dict[str, Weight]) -> Transformer:
        return Transformer(config, assemble(config, weights.__getitem__), Reference(), torch.float32)

    return over(small), over(large)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_logits_equal_those_of_the_dequantized_model_exactly(name: str, group_size: int | None, tied: bool) -> None:
    small, large = pair(name, group_size, tied=tied)
    tokens = torch.randint(small.config.vocab_size, (2, 40))
    assert torch.equal(logits(small, tokens), logits(large, tokens))


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_a_quantized_model_generates_what_the_dequantized_one_does(name: str, group_size: int | None) -> None:
    small, large = pair(name, group_size)
    prompt = torch.randint(small.config.vocab_size, (1, 9))
    generated = greedy(small, prompt, 24)
    assert len(generated) == 24
    assert generated == greedy(large, prompt, 24)


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("batch", [3, 17])
def test_a_row_of_a_batch_equals_the_row_alone_bit_for_bit(name: str, group_size: int | None, batch: int) -> None:
    small, _ = pair(name, group_size)
    tokens = torch.randint(small.config.vocab_size, (batch, 12))
    alone = torch.cat([logits(small, row.unsqueeze(0)) for row in tokens])
    assert torch.equal(logits(small, tokens), alone)


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_a_prompt_fed_in_pieces_gives_the_same_bits(name: str, group_size: int | None, chunk: int) -> None:
    small, _ = pair(name, group_size)
    tokens = torch.randint(small.config.vocab_size, (1, 21))
    cache = small.new_cache(1)
    pieces = [small.logits(small.forward(piece, cache)) for piece in tokens.split(chunk, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), logits(small, tokens))


def test_int8_logits_are_close_to_the_originals() -> None:
    original = ours(random_llama())
    tokens = torch.randint(original.config.vocab_size, (1, 40))
    small, _ = pair("int8", None)
    exact = logits(original, tokens)
    assert float((logits(small, tokens) - exact).norm() / exact.norm()) <= 0.05


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_the_weights_in_memory_are_those_of_the_scheme(name: str, group_size: int | None) -> None:
    small, large = pair(name, group_size)
    linears = [layer.gate_up for layer in small.weights.layers]
    assert {linear.weight.scheme for linear in linears} == {name}
    assert small.weights.n_bytes < large.weights.n_bytes
