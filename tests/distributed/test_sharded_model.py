"""A model in parts is the model: the same logits and the same tokens, on two ranks and on four."""

from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from distributed.choices import DISTINCT, EQUALS, N_ROWS, VOCABULARIES, choices
from distributed.ranks import on_ranks
from distributed.texts import TARGET, THREE_HEADS, cached, refusal, texts
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.build import ModelSource, RuntimeConfig, build
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.jobs.quantize import QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.models.decoder import Logits
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import WHOLE, Block, Weight, quantized, schemes
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
UNTIED = {"tie_word_embeddings": False}  # tied to a scaled embedding, a random head repeats the last token
# features that no Llama has: cases of random_models.py, with heads of a size that the CPU engine takes
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("norms after", {}),  # and queries and keys normalized over all heads
    "gemma3": ("two RoPEs", {"sliding_window": 3, **UNTIED}),  # narrower than a prompt
    "qwen2": ("biases", {}),
    "granite": ("multipliers", {"attention_bias": True, "mlp_bias": True, **UNTIED}),
}
UNEVEN = {**SIZES, "intermediate_size": 176, "num_key_value_heads": 4}  # half of it is no whole group of int4
Case: TypeAlias = tuple[str, str, int | None, str]  # shape or family, scheme, group size, backend
CASES: list[Case] = [
    *((shape, "plain", None, "cpu") for shape in SHAPES),
    ("own heads", "plain", None, "reference"),
    ("fewer key heads than ranks, tied", "plain", None, "reference"),
    ("own heads", "int8", None, "cpu"),
    *(("grouped heads, biases", "int4", 128, backend) for backend in ("reference", "cpu")),
    *((family, "plain", None, backend) for family in FAMILIES for backend in ("reference", "cpu")),
]
PROMPTS = [[1, 5, 99, 100, 7], [3], [42, 17, 42]]


def computed(group: ProcessGroup, root: Path) -> dict[Case, tuple[Tensor, list[int]]]:
    """Logits of some prompts side by side and of a greedy continuation of one, and its tokens, for each case."""
    with torch.inference_mode():
        return {case: _computed(group, root, *case) for case in CASES}


def _computed(
    group: ProcessGroup, root: Path, shape: str, scheme: str, group_size: int | None, backend: str
) -> tuple[Tensor, list[int]]:
    checkpoint = open_checkpoint(root / shape)
    allocation = AllocationOptions(scheme, group_size).allocation(checkpoint.config)
    storages = allocation.of(checkpoint.config)

    def read(name: str, block: Block | None) -> Weight:
        if storages[name].scheme == "plain":
            return checkpoint.weight(name, block)
        matrix = schemes["plain"].dense(checkpoint.weight(name), torch.float32)
        at = storages[name]
        whole = quantizers["nearest"].quantize(matrix, quantized(at.scheme), at.group_size)
        return whole if block is None else whole.block(block)

    outline = partial(allocation.outline, checkpoint.config, torch.float32)
    parts = ModelSource(checkpoint.config, read, outline, checkpoint.n_bytes, CPU, torch.float32)
    runtime = RuntimeConfig(backend=backend, activations="float", group=group)
    model = drained(build(parts, runtime, settings=settings_in(root), watch=Stopwatch(CPU)))[1]

    def whole(own: Tensor) -> Tensor:
        return Logits(own, model.shard, group).whole

    cache = model.new_cache(len(PROMPTS))
    logits = [whole(model.feed([torch.tensor(prompt) for prompt in PROMPTS], cache, slice(0, len(PROMPTS))))]
    for row, prompt in enumerate(PROMPTS):
        cache.advance(slice(row, row + 1), len(prompt))
    tokens = [int(logits[0][len(PROMPTS[0]) - 1].argmax())]
    for _ in range(5):
        logits.append(whole(model.step([[tokens[-1]]], cache, slice(0, 1))))
        tokens.append(int(logits[-1].argmax()))
        cache.advance(slice(0, 1), 1)
    return torch.cat(logits), tokens


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from families.random_models import saved_model  # transformers takes seconds, which the ranks do without

    root = tmp_path_factory.mktemp("models")
    for name, shape in SHAPES.items():
        saved(root / name, **shape)
    for family, (case, changes) in FAMILIES.items():
        saved_model(root / family, family, case, head_dim=32, **changes)
    saved(root / TARGET, **UNEVEN)
    saved(root / THREE_HEADS, seed=1, num_attention_heads=3, head_dim=32)
    int4 = AllocationOptions("int4")
    drained(quantize(QuantizeRequest(settings_in(root), str(root / TARGET), int4, out=root / "int4", fidelity=False)))
    return root


def everything(group: ProcessGroup, root: Path) -> dict[str, Any]:
    return {
        "models": computed(group, root),
        "choices": choices(group),
        "texts": texts(group, root),
        "cached": cached(group, root),
        "refusal": refusal(group, root),
    }


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Any]:
    return everything(ALONE, root)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, root: Path) -> list[dict[str, Any]]:
    return on_ranks(request.param, everything, root)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(map(str, case)))
def test_logits_and_tokens_are_those_of_the_model_in_one_piece(
    case: Case, alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    logits, tokens = alone["models"][case]
    theirs = [rank["models"][case] for rank in ranks]
    for their_logits, their_tokens in theirs:
        assert (their_logits - logits).abs().max() <= 1e-5 * max(1.0, logits.abs().max().item())
        assert their_tokens == tokens
        assert torch.equal(their_logits, theirs[0][0]), "ranks must decide alike"


def test_ranks_choose_the_tokens_that_one_would_choose(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for case, (tokens, _) in alone["choices"].items():
        assert len(set(tokens)) > 1, case
        for rank in ranks:
            assert rank["choices"][case][0] == tokens, case


def test_ranks_tell_one_another_no_more_than_a_choice_needs(ranks: list[dict[str, Any]]) -> None:
    n_tokens = VOCABULARIES[0]
    output = {case: n for case, (_, n) in ranks[0]["choices"].items() if case.endswith(str(n_tokens))}
    each, whole = 2 * N_ROWS, -(-n_tokens // len(ranks)) * N_ROWS  # a logit and its token
    for kind in (DISTINCT, EQUALS):
        assert output[f"greedy, {kind} {n_tokens}"] == output[f"greedy, penalized, {kind} {n_tokens}"] == each
        assert output[f"all, {kind} {n_tokens}"] == output[f"top-p, {kind} {n_tokens}"] == whole
    for k, case in ((1, "the best of equals"), (3, "top-k"), (3, "top-k, penalized"), (4, "top-k, top-p, min-p")):
        assert output[f"{case}, {DISTINCT} {n_tokens}"] == (k + 1) * each
        assert output[f"{case}, {EQUALS} {n_tokens}"] == (k + 1) * each + whole, "more equals than were gathered"


def test_texts_are_those_of_the_model_in_one_piece(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for case, text in alone["texts"].items():
        for rank in ranks:
            theirs = rank["texts"][case]
            assert theirs["tokens"] == text["tokens"], case
            assert theirs["rounds"] == text["rounds"], case
            torch.testing.assert_close(theirs["logprobs"], text["logprobs"], rtol=0, atol=1e-4)
            assert theirs["replicated"] == ("whole draft" in case or "three heads" in case), case
        assert not text["replicated"]
    assert any(sum(text["rounds"][1][1:]) > 3 for text in alone["texts"].values() if text["rounds"])


def test_each_rank_keeps_its_part_of_a_prompt(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert [fed for fed, _ in rank["cached"]] == [5, 5, 1, 5, 5]
        assert all(tokens == alone["cached"][0][1] for _, tokens in rank["cached"])


def test_a_model_whose_groups_cannot_be_cut_says_so_before_anything_is_read(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["refusal"] == ranks[0]["refusal"]
        message, n_read = rank["refusal"]
        assert "int4 cannot be cut at columns 0 and " in message and n_read == 0


def test_all_parts_together_are_the_model(root: Path) -> None:
    checkpoint = open_checkpoint(root / "grouped heads, biases")
    for size in (2, 4, 8):
        shares = [ModelShard(checkpoint.config, rank, size) for rank in range(size)]
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
    assert caught.value.hint == "Possible values: 1, 2, 4, 8."
