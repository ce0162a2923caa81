"""What keys and values in int8 cost on the bundled model, within documents that go beyond a block of 128 keys."""

from pathlib import Path

import pytest
import torch

from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.evals.divergence import Comparison, Divergence
from gptfast_cli.core.evals.held_out import bundled_documents
from model_files import drained, settings_in


def divergence(models: list[LoadedModel]) -> Divergence:
    """Over each document by itself: run together they are nothing that the model has learned to continue."""
    tokenizer, longest = models[0].tokenizer, models[0].config.max_context
    assert tokenizer is not None
    comparison = Comparison()
    for text in (each for each in bundled_documents(tokenizer, longest) if len(each) > 130):
        logits = []
        for each in models:
            cache = each.model.new_cache(1)
            with torch.inference_mode():
                logits.append(each.model.feed([torch.tensor(text[:-1])], cache, slice(None)))
        comparison.add(*logits, torch.tensor(text[1:]))
    return comparison.result()


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"), [("reference", "float32", 2e-7), ("cpu", "float32", 2e-7), ("cpu", "bfloat16", 2e-6)]
)
def test_they_diverge_from_the_whole_cache_by_next_to_nothing(
    tmp_path: Path, backend: str, dtype: str, bound: float
) -> None:
    placings = [RuntimeConfig("cpu", dtype, backend=backend, kv_dtype=kv_dtype) for kv_dtype in ("auto", "int8")]
    models = [drained(load("tiny", settings_in(tmp_path), runtime))[1] for runtime in placings]
    output = divergence(models)
    assert output.tokens == 4359
    assert 1e-8 < output.kld_mean <= bound
    assert output.same_top1 > 0.998
