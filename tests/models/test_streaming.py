"""Texts that go through a model block by block give the numbers of the whole model, each text at its own beginning."""

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.models.streaming import Stream, _alike
from llama_oracle import SHAPES, ours, random_llama

LENGTHS = (40, 1, 7, 300, 7, 129)


def texts_of(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def streamed(shape: str, texts: list[list[int]], *, block_tokens: int = 64, **sizes: int) -> Tensor:
    model = ours(random_llama(**SHAPES[shape]))
    passing = Stream(model.config, texts, backend=Reference(), device=torch.device("cpu"))
    passing.embed(model.weights.embedding, torch.float32)
    for number, layer in enumerate(model.weights.layers):
        passing.layer(number, layer)
    blocks = list(passing.logits(model.weights.norm, model.weights.head, block_tokens=block_tokens, **sizes))
    assert all(len(block) == block_tokens for block in blocks[:-1])
    return torch.cat(blocks)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(shape: str) -> None:
    oracle = random_llama(**SHAPES[shape])
    texts = texts_of(oracle.config.vocab_size)
    with torch.inference_mode():
        expected = torch.cat([oracle(input_ids=torch.tensor([text])).logits[0] for text in texts])
    torch.testing.assert_close(streamed(shape, texts), expected, rtol=1e-4, atol=1e-4)


def test_a_text_has_the_same_bits_alone_and_among_others() -> None:
    texts = texts_of(101)
    alone = torch.cat([streamed("llama-2", [text]) for text in texts])
    assert torch.equal(streamed("llama-2", texts), alone)


def test_a_head_in_slices_gives_the_numbers_of_the_whole() -> None:
    texts = texts_of(101)
    whole = streamed("llama-2", texts)
    slices = streamed("llama-2", texts, block_tokens=1000, slice_elements=36 * 30)  # 30 rows, and 11 at the end
    torch.testing.assert_close(slices, whole, rtol=1e-5, atol=1e-5)


def test_no_more_tokens_go_through_a_layer_at_once_than_are_allowed() -> None:
    batches = list(_alike(texts_of(101), filled_up=True, batch_tokens=50))
    lengths = [[LENGTHS[number] for number in batch] for batch in batches]
    assert lengths == [[1, 7, 7], [40], [129], [300]]
