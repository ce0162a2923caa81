"""What a layer may have beside what a Llama has: the CPU engine gives what the reference gives."""

import pytest
import torch
from torch import Tensor

from cpu_engine import fed, native, reference, stored
from gptfast_cli.core.models.decoder import Decoder
from layer_features import CONFIGS, random_weights

N_TOKENS = 300  # more than a chunk of keys, and than a block beyond every window


def texts(n: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randint(vocab_size, (N_TOKENS - 70 * row,), generator=generator).tolist() for row in range(n)]


@torch.inference_mode()
def logits(model: Decoder, text: list[int]) -> Tensor:
    """Logits after every token of a text that is fed in two parts."""
    cache, given = model.new_cache(1), []
    for part in (text[:200], text[200:]):
        given.append(model.feed([torch.tensor(part)], cache, slice(0, 1)))
        cache.advance(slice(0, 1), len(part))
    return torch.cat(given)


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_are_those_of_the_reference(name: str) -> None:
    config, weights = CONFIGS[name], random_weights(CONFIGS[name])
    (text,) = texts(1, config.vocab_size)
    theirs = logits(reference(config, weights), text)
    ours = logits(native(config, weights, torch.float32, n_threads=2), text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize(
    ("storage", "dtype", "kv_dtype", "error"),
    [
        ("float32", torch.float32, torch.int8, 1e-3),  # a key on the border between two codes may get either
        ("int8", torch.float32, torch.float32, 1e-5),
        ("bfloat16", torch.bfloat16, torch.bfloat16, 0.02),
        ("int4-32", torch.bfloat16, torch.int8, 0.06),
    ],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_narrower_forms_stay_near_the_reference(
    name: str, storage: str, dtype: torch.dtype, kv_dtype: torch.dtype, error: float
) -> None:
    config, (text,) = CONFIGS[name], texts(1, CONFIGS[name].vocab_size)
    weights = {name: stored(next(iter(each.parts.values())), storage) for name, each in random_weights(config).items()}
    theirs = logits(reference(config, weights, kv_dtype=torch.int8 if kv_dtype is torch.int8 else None), text)
    ours = logits(native(config, weights, dtype, n_threads=2, kv_dtype=kv_dtype), text)
    assert float((ours - theirs).norm() / theirs.norm()) < error


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_in_any_pieces_and_any_batch_gives_the_same_bits(name: str) -> None:
    config = CONFIGS[name]
    for dtype in (torch.float32, torch.bfloat16):
        model = native(config, random_weights(config), dtype, n_threads=2)
        rows = texts(2, config.vocab_size)
        alone = [fed(model, text, [1] * len(text)) for text in rows]
        assert torch.equal(fed(model, rows[0], [3, 130, 167]), alone[0][[2, 132, 299]])
        cache = model.new_cache(2)
        together = model.feed([torch.tensor(text) for text in rows], cache, slice(0, 2))
        assert torch.equal(together, torch.cat(alone))
