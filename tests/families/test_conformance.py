"""Every family computes what transformers does, and the same bits in any batch, quantized or not, whole or sharded."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cpu_engine import native
from families.random_models import CASES, EVERY_CASE, FIRST_CASES, ours, over, random_model, saved_model, weights_of
from families.threads import on_threads
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.checkpoints.manifest import config_from_json, config_to_json
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.evals.conversion import logit_difference
from gptfast_cli.core.families import families
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.models.process_group import ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_shapes
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from model_files import converted, run_to_end, settings_in

PAST = 150  # tokens, more than six windows
QUANTIZED = [("int8", None), ("int4", 32)]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model.logits(model.forward(tokens, model.new_cache(tokens.shape[0])))


def bound(expected: Tensor) -> float:
    return 1e-5 * max(1.0, float(expected.abs().max()))


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 101, shape, generator=torch.Generator().manual_seed(seed))


def test_every_family_has_sizes_to_be_tested_with() -> None:
    assert set(CASES) == set(families)


@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_logits_and_greedy_tokens_equal_those_of_transformers(family: str, case: str) -> None:
    theirs = random_model(family, case)
    model = ours(family, theirs)
    tokens = random_tokens(2, PAST)
    expected = theirs(tokens).logits
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=bound(expected))

    cache = model.new_cache(1)
    text = tokens[:1, :9]
    x = model.forward(text, cache)
    for _ in range(64):
        token = model.logits(x[:, -1]).argmax(dim=-1, keepdim=True)
        text = torch.cat([text, token], dim=1)
        x = model.forward(token, cache)
    # what transformers would choose after each of them
    assert torch.equal(theirs(text).logits[:, 8:-1].argmax(dim=-1), text[:, 9:])


@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_cached_equals_uncached_bit_for_bit(family: str, case: str) -> None:
    model = ours(family, random_model(family, case))
    tokens = random_tokens(1, PAST)
    cache = model.new_cache(1)
    pieces = tokens.split([64, 1, 1, 5, 1, 23, 1, 1, 52, 1], dim=1)
    cached = [model.logits(model.forward(piece, cache)) for piece in pieces]
    assert torch.equal(torch.cat(cached, dim=1), logits(model, tokens))


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["float", "int8"])
@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_a_row_of_a_ragged_batch_equals_the_row_alone_bit_for_bit(
    family: str, case: str, kv_dtype: torch.dtype | None
) -> None:
    theirs = random_model(family, case)
    model = ours(family, theirs, kv_dtype=kv_dtype)
    starts = [0, 3, 140, 33]
    history, tokens = random_tokens(4, 140), random_tokens(4, 6, seed=1)
    batch, alone = model.new_cache(4), []
    for row, start in enumerate(starts):
        single = model.new_cache(1)
        if start:
            model.forward(history[row : row + 1, :start], batch, rows=slice(row, row + 1))
            model.forward(history[row : row + 1, :start], single)
        alone.append(model.logits(model.forward(tokens[row : row + 1], single)))
    batched = model.logits(model.forward(tokens, batch))
    assert torch.equal(batched, torch.cat(alone))
    if kv_dtype is torch.int8:
        whole = torch.cat([history[2:3], tokens[2:3]], dim=1)
        exact = theirs(whole).logits[:, -6:]
        assert float((batched[2:3] - exact).norm() / exact.norm()) < 0.05


def quantized_weights(weights: dict[str, Weight], scheme: str, group_size: int | None) -> dict[str, Weight]:
    def quantize(weight: Weight) -> Weight:
        if len(weight.shape) == 1:
            return weight
        return quantizers["nearest"].quantize(weight.parts["weight"], quantized(scheme), group_size)

    return {name: quantize(weight) for name, weight in weights.items()}


@pytest.mark.parametrize(("scheme", "group_size"), QUANTIZED)
@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_a_quantized_model_computes_what_its_dequantized_weights_do(
    family: str, case: str, scheme: str, group_size: int | None
) -> None:
    config, weights = weights_of(families[family], random_model(family, case))
    small = quantized_weights(weights, scheme, group_size)
    large = {name: plain(schemes[each.scheme].dense(each, torch.float32)) for name, each in small.items()}
    tokens = random_tokens(2, 40)
    assert torch.equal(logits(over(config, small), tokens), logits(over(config, large), tokens))


@pytest.mark.parametrize("n_ranks", [2, 4])
@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_ranks_together_compute_what_the_whole_model_does(family: str, case: str, n_ranks: int) -> None:
    config, weights = weights_of(families[family], random_model(family, case))
    tokens = random_tokens(2, 40)

    def sharded(group: ProcessGroup) -> Tensor:
        shard = ModelShard(config, group.rank, group.size)

        def read(name: str) -> Weight:
            block = shard.block(name)
            return plain(torch.zeros(weights[name].shape)) if block is None else weights[name].block(block)

        with torch.inference_mode():
            model = Transformer(config, assemble(config, read), Reference(), torch.float32, group=group)
            return logits(model, tokens)  # of the rank's own tokens

    expected = logits(over(config, weights), tokens)
    found = torch.cat(on_threads(n_ranks, sharded), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=bound(expected))


@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_the_cpu_engine_computes_what_transformers_does(family: str, case: str) -> None:
    changes: dict[str, Any] = {"head_dim": 32}  # which it runs
    if family == "phi3":
        longrope = {"type": "longrope", "short_factor": [2.0] * 8, "long_factor": [4.0] * 8}
        changes = {"hidden_size": 128, "partial_rotary_factor": 0.5, "rope_scaling": longrope}
    theirs = random_model(family, case, **changes)
    engine, tokens = native(*weights_of(families[family], theirs), torch.float32), random_tokens(PAST)
    found = engine.feed([tokens], engine.new_cache(1), slice(0, 1))
    expected = theirs(tokens.unsqueeze(0)).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=bound(expected))

    cache, text = engine.new_cache(1), tokens[:9].tolist()
    fed = text
    for _ in range(64):
        found = engine.step([fed], cache, slice(0, 1))
        cache.advance(slice(0, 1), len(fed))
        fed = [int(found.argmax())]
        text = [*text, *fed]
    assert theirs(torch.tensor([text])).logits[0, 8:-1].argmax(dim=-1).tolist() == text[9:]


def test_texts_longer_than_the_original_context_have_the_long_factors_for_all_tokens() -> None:
    theirs = random_model("phi3", "LongRoPE of a part", original_max_position_embeddings=32)
    config, weights = weights_of(families["phi3"], theirs)
    assert (config.max_context, config.longest_context) == (32, 2048)
    text = random_tokens(80)
    with torch.inference_mode():
        expected = theirs(input_ids=text.unsqueeze(0)).logits[0]
    found = logits(over(config.for_context(80), weights), text.unsqueeze(0))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=bound(expected))
    short = logits(over(config, weights), text.unsqueeze(0))[0]
    assert float((short - expected).abs().max()) > 100 * bound(expected)


@pytest.mark.parametrize("kind", ["ngram", "smaller model"])
@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_speculation_gives_the_text_of_the_target_alone(family: str, case: str, kind: str) -> None:
    model = ours(family, random_model(family, case))
    draft = over(*halved(family, case))
    limits = Limits(24, 512, frozenset())
    texts = []
    for proposer in (None, NGram(2) if kind == "ngram" else DraftModel(draft, 2)):
        requests = [
            Request(n, prompt, Sampler(Sampling(temperature=0), 0, n), limits)
            for n, prompt in enumerate([(5, 9, 30, 5, 9), (7,), tuple(random_tokens(40).tolist())])
        ]
        speculation = None if proposer is None else Speculation(proposer, FixedDraftLength(3))
        run_to_end(Engine(Runner(model, 2), speculation), requests)
        texts.append([request.generated for request in requests])
    assert texts[0] == texts[1]
    assert speculation is not None
    assert speculation.rounds.n_rounds


def halved(family: str, case: str) -> tuple[object, dict[str, Weight]]:
    """The model in int4, without its last layer: it agrees now and then."""
    config, weights = weights_of(families[family], random_model(family, case))
    last = f"layers.{config.n_layers - 1}."
    kept = {name: weight for name, weight in weights.items() if not name.startswith(last)}
    return replace(config, layers=config.layers[:-1]), quantized_weights(kept, "int8", None)


@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_the_shape_comes_back_from_a_manifest(family: str, case: str) -> None:
    config = families[family].config(random_model(family, case).config.to_dict())
    written = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(Fields(written, "gptfast.json")) == config


@pytest.mark.parametrize(("family", "case"), EVERY_CASE)
def test_the_sources_are_exactly_the_tensors_that_transformers_saves(family: str, case: str) -> None:
    model = random_model(family, case)
    config = families[family].config(model.config.to_dict())
    sources = families[family].sources(config)
    assert set(sources) == set(weight_shapes(config))
    assert config.n_params == sum(math.prod(shape) for shape in weight_shapes(config).values())
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    assert sorted(name for names in sources.values() for name in names) == sorted(set(model.state_dict()) - tied)


@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_a_saved_folder_is_converted_to_what_transformers_computes(family: str, case: str, tmp_path: Path) -> None:
    saved_model(tmp_path / "model", family, case)
    written = converted(tmp_path / "model", settings_in(tmp_path), dtype="bfloat16")
    source, checkpoint = open_checkpoint(tmp_path / "model"), open_checkpoint(written.path)
    assert checkpoint.config == source.config
    assert logit_difference(source, checkpoint) < 1e-5
