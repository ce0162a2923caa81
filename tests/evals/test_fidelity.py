"""Fidelity, had block by block, is the divergence of the two whole models on the same texts."""

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.evals.divergence import BlockwiseKLD, Comparison, Divergence
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_blocks, weight_shapes
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import SHAPES, random_llama

CPU = torch.device("cpu")


def weights_of(model: LlamaForCausalLM) -> dict[str, Weight]:
    config = families["llama"].config(model.config.to_dict())
    sources, tensors = families["llama"].sources(config), model.state_dict()
    return {name: plain(torch.cat([tensors[source] for source in sources[name]])) for name in weight_shapes(config)}


def in_int4(weights: dict[str, Weight]) -> dict[str, Weight]:
    scheme, rounding = quantized("int4"), quantizers["nearest"]
    return {
        name: rounding.quantize(weight.parts["weight"], scheme, 32) if len(weight.shape) == 2 else weight
        for name, weight in weights.items()
    }


def some_texts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (31, 2, 150, 7)]


def measured(model: LlamaForCausalLM, *, dtype: torch.dtype = torch.float32, **options: int) -> Divergence:
    config, weights = families["llama"].config(model.config.to_dict()), weights_of(model)
    small = in_int4(weights)
    fidelity = BlockwiseKLD[None](config, some_texts(config.vocab_size), device=CPU, dtype=dtype, **options)
    results = [
        fidelity.add({name: weights[name] for name in block}, {None: {name: small[name] for name in block}})
        for block in weight_blocks(config)
    ]
    assert not any(results[:-1])
    return results[-1][None]


def of_whole_models(model: LlamaForCausalLM) -> Divergence:
    """Both models run by transformers, the second over dequantized weights."""
    config = families["llama"].config(model.config.to_dict())
    sources, small = families["llama"].sources(config), in_int4(weights_of(model))
    changed: dict[str, Tensor] = {}
    for name, weight in small.items():
        dense = schemes[weight.scheme].dense(weight, torch.float32)
        n_rows = [len(model.state_dict()[source]) for source in sources[name]]
        changed |= dict(zip(sources[name], dense.split(n_rows), strict=True))
    texts, comparison = some_texts(config.vocab_size), Comparison()

    def logits() -> list[Tensor]:
        with torch.inference_mode():
            return [model(input_ids=torch.tensor([text[:-1]])).logits[0] for text in texts]

    before = logits()
    model.load_state_dict(changed, strict=False)
    for text, p_logits, q_logits in zip(texts, before, logits(), strict=True):
        comparison.add(p_logits, q_logits, torch.tensor(text[1:]))
    return comparison.result()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_divergence_of_the_whole_models_as_transformers_runs_them(shape: str) -> None:
    found, expected = measured(random_llama(**SHAPES[shape])), of_whole_models(random_llama(**SHAPES[shape]))
    assert found.tokens == expected.tokens == 30 + 1 + 149 + 6
    assert 0.5 < expected.alpha < 0.9999
    assert dataclasses.asdict(found) == pytest.approx(dataclasses.asdict(expected), rel=1e-3)


def test_logits_in_small_blocks_give_the_same() -> None:
    whole = measured(random_llama())
    assert dataclasses.asdict(measured(random_llama(), piece_logits=2 * 101 * 16)) == pytest.approx(
        dataclasses.asdict(whole), rel=1e-6
    )


def test_no_logits_are_kept_while_the_next_ones_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    n_kept: list[int] = []
    taken_in: list[weakref.ref[Tensor]] = []
    head, add = Reference.head, Comparison.add

    def watched_head(self: Reference, *arguments: Any, **options: Any) -> Tensor:
        n_kept.append(sum(logits() is not None for logits in taken_in))
        return head(self, *arguments, **options)

    def watched_add(self: Comparison, reference: Tensor, other: Tensor, targets: Tensor) -> None:
        taken_in.extend([weakref.ref(reference), weakref.ref(other)])
        add(self, reference, other, targets)

    monkeypatch.setattr(Reference, "head", watched_head)
    monkeypatch.setattr(Comparison, "add", watched_add)
    measured(random_llama(), piece_logits=2 * 101 * 16)
    assert len(n_kept) == len(taken_in) == 2 * 12
    assert not any(n_kept)


def test_a_model_beside_itself_has_lost_nothing() -> None:
    model = random_llama()
    config, weights = families["llama"].config(model.config.to_dict()), weights_of(model)
    fidelity = BlockwiseKLD[None](config, some_texts(101), device=CPU, dtype=torch.bfloat16)
    for names in weight_blocks(config):
        block = {name: weights[name] for name in names}
        found = fidelity.add(block, {None: block})
    result = found[None]
    assert (result.kld_max, result.same_top1, result.alpha, result.ppl_ratio) == (0, 1, 1, 1)


def test_it_can_be_had_in_bfloat16() -> None:
    exact, rough = measured(random_llama()), measured(random_llama(), dtype=torch.bfloat16)
    assert rough != exact
    assert rough.alpha == pytest.approx(exact.alpha, abs=0.02)
