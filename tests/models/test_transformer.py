"""The decoder agrees with transformers, with itself uncached, and with itself in any company."""

import pytest
import torch

from llama_oracle import SHAPES, greedy, logits, ours, random_llama

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(shape: str) -> None:
    reference = random_llama(**SHAPES[shape])
    tokens = torch.randint(reference.config.vocab_size, (2, 150))
    expected = reference(tokens).logits
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits(ours(reference), tokens), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("shape", SHAPES)
def test_64_greedy_tokens_equal_those_of_transformers(shape: str) -> None:
    reference = random_llama(seed=1, **SHAPES[shape])
    prompt = torch.randint(reference.config.vocab_size, (1, 9))
    expected = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None
    )
    assert greedy(ours(reference), prompt, 64) == expected[0, 9:].tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_cached_equals_uncached_bit_for_bit(shape: str, chunk: int) -> None:
    model = ours(random_llama(**SHAPES[shape]))
    tokens = torch.randint(model.config.vocab_size, (1, 301))
    cache = model.new_cache(1)
    pieces = [model.logits(model.forward(piece, cache)) for piece in tokens.split(chunk, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), logits(model, tokens))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", [1, 6])
def test_a_batch_of_ragged_rows_equals_each_row_alone_bit_for_bit(shape: str, time: int) -> None:
    model = ours(random_llama(**SHAPES[shape]))
    starts = [0, 3, 257, 64, 17]
    history = torch.randint(model.config.vocab_size, (len(starts), max(starts)))
    tokens = torch.randint(model.config.vocab_size, (len(starts), time))

    batch = model.new_cache(len(starts))
    alone = []
    for row, start in enumerate(starts):
        single = model.new_cache(1)
        if start:
            model.forward(history[row : row + 1, :start], batch, rows=slice(row, row + 1))
            model.forward(history[row : row + 1, :start], single)
        alone.append(model.logits(model.forward(tokens[row : row + 1], single)))
    batched = model.logits(model.forward(tokens, batch))

    assert torch.equal(batched, torch.cat(alone))
    assert batch.lengths == [start + time for start in starts]


def test_larger_layers_keep_rows_independent_too() -> None:
    # enough elements for PyTorch to split an operation between its threads
    shape = {"hidden_size": 320, "intermediate_size": 1100, "num_attention_heads": 5, "num_key_value_heads": 5}
    model = ours(random_llama(**shape, vocab_size=2003))
    tokens = torch.randint(2003, (7, 37))
    alone = torch.cat([logits(model, row.unsqueeze(0)) for row in tokens])
    assert torch.equal(logits(model, tokens), alone)


def test_a_rolled_back_row_goes_on_as_if_nothing_had_been_there() -> None:
    model = ours(random_llama())
    kept, dropped, after = (torch.randint(101, (1, n)) for n in (10, 7, 4))
    cache = model.new_cache(1)
    model.forward(kept, cache)
    model.forward(dropped, cache)
    cache.rollback(0, 10)
    x = model.forward(after, cache)
    assert torch.equal(model.logits(x), logits(model, torch.cat([kept, after], dim=1))[:, 10:])
