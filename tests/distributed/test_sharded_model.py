"""A model in parts is the model: the same logits and the same tokens, on two ranks and on four."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed.ranks import on_ranks
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.decode.building import Parts, Placing, build
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.formats import WHOLE, Block, Weight, quantized, schemes
from gptfast_cli.core.model.collective import ALONE, Collective
from gptfast_cli.core.model.share import Share, check_divides
from gptfast_cli.core.quant.allocation import AllocationOptions
from gptfast_cli.core.quant.rounding import roundings
from gptfast_cli.core.stopwatch import Stopwatch
from model_files import drained, saved, settings_in

CPU = torch.device("cpu")
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8, "head_dim": 32, "num_hidden_layers": 2}
SHAPES = {
    "own heads": {**SIZES, "num_key_value_heads": 8},
    "grouped heads, biases": {**SIZES, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "fewer key heads than ranks, tied": {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "one key head": {**SIZES, "num_key_value_heads": 1},
}
CASES = [
    *((shape, "plain", None, backend) for shape in SHAPES for backend in ("reference", "cpu")),
    ("own heads", "int8", None, "cpu"),
    *(("grouped heads, biases", "int4", 128, backend) for backend in ("reference", "cpu")),
]
PROMPTS = [[1, 5, 99, 100, 7], [3], [42, 17, 42]]


def computed(together: Collective, root: Path) -> list[tuple[Tensor, list[int]]]:
    """Logits of some prompts side by side, and a greedy continuation of one, for each case."""
    with torch.inference_mode():
        return [_computed(together, root, *case) for case in CASES]


def _computed(
    together: Collective, root: Path, shape: str, scheme: str, group_size: int | None, backend: str
) -> tuple[Tensor, list[int]]:
    checkpoint = open_checkpoint(root / shape)
    storages = AllocationOptions(scheme, group_size).allocation(checkpoint.config).of(checkpoint.config)

    def read(name: str, block: Block | None) -> Weight:
        if storages[name].scheme == "plain":
            return checkpoint.weight(name, block)
        matrix = schemes["plain"].dense(checkpoint.weight(name), torch.float32)
        at = storages[name]
        whole = roundings["nearest"].quantize(matrix, quantized(at.scheme), at.group_size)
        return whole if block is None else whole.block(block)

    parts = Parts(checkpoint.config, read, checkpoint.n_bytes, CPU, torch.float32)
    placing = Placing(backend=backend, activations="float", together=together)
    model = drained(build(parts, placing, settings=settings_in(root), watch=Stopwatch(CPU)))[1]
    cache = model.new_cache(len(PROMPTS))
    cache.reserve(32)
    logits = model.feed([torch.tensor(prompt) for prompt in PROMPTS], cache, slice(0, len(PROMPTS)))
    for row, prompt in enumerate(PROMPTS):
        cache.advance(slice(row, row + 1), len(prompt))
    tokens = [int(logits[len(PROMPTS[0]) - 1].argmax())]
    for _ in range(12):
        tokens.append(int(model.step([[tokens[-1]]], cache, slice(0, 1)).argmax()))
        cache.advance(slice(0, 1), 1)
    return logits.clone(), tokens


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, shape in SHAPES.items():
        saved(root / name, **shape)
    return root


@pytest.fixture(scope="module")
def alone(root: Path) -> list[tuple[Tensor, list[int]]]:
    return computed(ALONE, root)


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_logits_and_tokens_are_those_of_the_model_in_one_piece(
    root: Path, alone: list[tuple[Tensor, list[int]]], n_ranks: int
) -> None:
    ranks = on_ranks(n_ranks, computed, root)
    for case, (logits, tokens), *others in zip(CASES, alone, *ranks, strict=True):
        bound = 1e-5 * max(1.0, logits.abs().max().item())
        for their_logits, their_tokens in others:
            assert (their_logits - logits).abs().max() <= bound, case
            assert their_tokens == tokens, case
            assert torch.equal(their_logits, others[0][0]), f"{case}: ranks must decide alike"


def test_all_parts_together_are_the_model(root: Path) -> None:
    checkpoint = open_checkpoint(root / "grouped heads, biases")
    for size in (2, 4, 8):
        shares = [Share(checkpoint.config, rank, size) for rank in range(size)]
        for name in ("layers.1.down", "layers.0.attention_output"):
            parts = [checkpoint.weight(name, share.block(name) or WHOLE).parts["weight"] for share in shares]
            assert torch.equal(torch.cat(parts, dim=1), checkpoint.weight(name).parts["weight"])
        for name in ("embedding", "head"):
            parts = [checkpoint.weight(name, share.block(name) or WHOLE).parts["weight"] for share in shares]
            assert torch.equal(torch.cat(parts), checkpoint.weight(name).parts["weight"])
        gates = [checkpoint.weight("layers.0.gate_up", share.block("layers.0.gate_up") or WHOLE) for share in shares]
        halves = [part.parts["weight"].chunk(2) for part in gates]
        whole = torch.cat([*(gate for gate, _ in halves), *(up for _, up in halves)])
        assert torch.equal(whole, checkpoint.weight("layers.0.gate_up").parts["weight"])


@pytest.mark.parametrize(
    ("n_ranks", "says"),
    [(3, "8 query heads"), (16, "8 query heads"), (5, "8 query heads")],
)
def test_a_model_that_cannot_be_dealt_out_evenly_says_what_can_be(root: Path, n_ranks: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_divides(open_checkpoint(root / "own heads").config, n_ranks)
    assert caught.value.hint == "It divides among 1, 2, 4, 8."
