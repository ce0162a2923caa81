"""Made-up weights are stored as their schemes store real ones, keep activations finite, and come again with a seed."""

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, RandomWeights, load_random, planned_bytes, random_matrix
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.shapes import Shape, read_shape
from gptfast_cli.core.events import Progress
from gptfast_cli.core.models.weights import ModelWeights, assemble
from gptfast_cli.core.quantize.allocation import AllocationOptions, Storage
from gptfast_cli.core.schemes import schemes
from gptfast_cli.core.settings import load_settings
from model_files import drained
from quantized_cases import CASES

CPU = torch.device("cpu")
SHAPE = read_shape("layers=3,dim=72,heads=6,kv_heads=2,ffn=200,vocab=101,context=64")
STORAGES = [Storage("plain"), *(Storage(name, group_size) for name, group_size in CASES)]


def made(mode: str, *, seed: int = 0, config: ModelConfig = SHAPE.config) -> ModelWeights:
    allocation = AllocationOptions(mode).allocation(config)
    read = RandomWeights(config, allocation, device=CPU, dtype=torch.float32, seed=seed).read
    return assemble(config, read)


def dense(weights: ModelWeights) -> list[Tensor]:
    linears = [linear.weight for layer in weights.layers for linear in (layer.qkv, layer.down)]
    every = [weights.embedding, weights.head, weights.norm, *linears]
    return [schemes[weight.scheme].dense(weight, torch.float32) for weight in every]


def subject(mode: str, shape: Shape = SHAPE, **options: str) -> LoadedModel:
    runtime = RuntimeConfig(device="cpu", dtype="bfloat16")
    making = load_random(
        shape,
        AllocationOptions(mode, **options),
        runtime,
        seed=0,
        settings=load_settings({}),
        torch_backend=Reference(),
    )
    return drained(making)[1]


@pytest.mark.parametrize("in_features", [256, 200])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_matrix_is_whole_and_has_the_size_of_a_trained_one(storage: Storage, in_features: int) -> None:
    weight = random_matrix(storage, (300, in_features), torch.Generator().manual_seed(0), dtype=torch.float32)
    scheme = schemes[storage.scheme]
    assert scheme.is_whole(weight)
    dense = scheme.dense(weight, torch.float32)
    assert dense.std().item() == pytest.approx(in_features**-0.5, rel=0.1)
    assert abs(dense.mean().item()) < 0.2 * in_features**-0.5


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_block_of_rows_is_drawn(storage: Storage) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = random_matrix(storage, (100, 64), generator, dtype=torch.float32, block_elements=40 * 64)
    dense = schemes[storage.scheme].dense(weight, torch.float32)
    assert len({tuple(row.tolist()) for row in dense}) == 100
    assert dense.abs().amax() < 1


@pytest.mark.parametrize("mode", ["plain", "int8", "int4"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(mode: str) -> None:
    first, again, other = dense(made(mode)), dense(made(mode)), dense(made(mode, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[-1], first[-3]), "two layers are alike"


# by hand: 3 layers of query/key/value (72 + 2 * 24) * 72, output 72 * 72, gate and up 400 * 72, down 72 * 200;
# embedding and head 101 * 72 each; norms 7 * 72 in bfloat16
LAYER_ELEMENTS = 120 * 72 + 72 * 72 + 400 * 72 + 72 * 200
ENDS_INT8 = 2 * (101 * 72 + 101 * 2)
NORMS = 7 * 72 * 2
# a row of 72 is 3 groups of 32: 48 bytes of codes, 3 scales of 2 bytes, 2 bytes of zero points; one of 200 is 7 groups
INT4_LAYER = (120 + 72 + 400) * (48 + 6 + 2) + 72 * (112 + 14 + 4)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("plain", 2 * (3 * LAYER_ELEMENTS + 2 * 101 * 72) + NORMS),
        ("int8", 3 * (LAYER_ELEMENTS + 2 * (120 + 72 + 400 + 72)) + ENDS_INT8 + NORMS),
        ("int4", 3 * INT4_LAYER + ENDS_INT8 + NORMS),
    ],
)
def test_the_bytes_are_those_of_a_count_by_hand(mode: str, expected: int) -> None:
    allocation = AllocationOptions(mode).allocation(SHAPE.config)
    assert planned_bytes(SHAPE.config, allocation, torch.bfloat16) == expected
    assert subject(mode).model.weights.n_bytes == expected


def test_four_bits_in_groups_of_32_are_4_625_bits() -> None:
    config = read_shape("llama-2-7b").config
    allocation = AllocationOptions("int4").allocation(config)
    elements = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    ends, norms = 2 * 32000 * (4096 + 2), 65 * 4096 * 2
    assert planned_bytes(config, allocation, torch.bfloat16) == elements * 4.625 / 8 + ends + norms


@pytest.mark.parametrize(("mode", "bytes_of_a_row"), [("plain", 72 * 2), ("int8", 72 + 2), ("int4", 72 + 2)])
def test_a_step_over_quantized_weights_reads_what_a_count_by_hand_says(mode: str, bytes_of_a_row: int) -> None:
    runner = Runner(subject(mode).model, 2)
    for row in range(2):
        runner.prefill(row, [1] * 5)
    table = 101 * bytes_of_a_row  # of which a step reads a row for each sequence
    kv = 2 * 5 * (3 * 2 * 2 * 12 * 2)
    assert runner.step_bytes(2) == runner.model.weights.n_bytes - table + 2 * bytes_of_a_row + kv


@pytest.mark.parametrize("mode", ["plain", "int8", "int4"])
def test_activations_stay_finite_in_a_deep_model(mode: str) -> None:
    deep = read_shape("layers=40,dim=64,heads=4,ffn=200,vocab=101")
    logits = Runner(subject(mode, deep).model, 1).prefill(0, list(range(50))).whole
    assert logits.isfinite().all()
    assert 0.01 < logits.std().item() < 100


def test_a_tied_head_is_the_embedding() -> None:
    tied = subject("int4", read_shape("layers=1,dim=64,heads=4,ffn=96,vocab=101,tied=yes"), head="plain")
    assert tied.model.weights.head is tied.model.weights.embedding
    assert tied.model.weights.head.scheme == "plain"
    assert (tied.scheme, tied.n_params) == (
        "int4-g32-embeddings-plain-head-plain",
        101 * 64 + 3 * 64 + 64 * 64 * 4 + 64 * 96 * 3,
    )


def test_progress_reaches_the_bytes_that_were_planned() -> None:
    making = load_random(
        SHAPE,
        AllocationOptions("int4"),
        RuntimeConfig(device="cpu"),
        seed=0,
        settings=load_settings({}),
        torch_backend=Reference(),
    )
    events, made_of_it = drained(making)
    n_bytes = made_of_it.model.weight_bytes
    assert events[-1] == Progress("load", n_bytes, n_bytes, "bytes")
