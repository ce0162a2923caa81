"""What rounding a product's inputs to 8 bits costs on the bundled model: next to nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.evals.divergence import Comparison
from gptfast_cli.core.evals.held_out import bundled_texts
from gptfast_cli.core.jobs.quantize import QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import drained, settings_in


def logits(loaded: LoadedModel, text: list[int]) -> Tensor:
    """Of the token that comes after each, [tokens, vocab]."""
    cache = loaded.model.new_cache(1)
    rows = []
    for token in text:
        rows.append(loaded.model.step([[token]], cache, slice(None)))
        cache.advance(slice(None), 1)
    return torch.cat(rows)


@pytest.mark.parametrize("storage", [AllocationOptions("int8"), AllocationOptions("int4")], ids=["int8", "int4"])
def test_rounded_inputs_diverge_from_float_ones_by_less_than_a_thousandth(
    tmp_path: Path, storage: AllocationOptions
) -> None:
    settings = settings_in(tmp_path)
    drained(run(QuantizeRequest(settings, model="tiny", storage=storage, fidelity=False)))
    rounded, exact = (
        drained(load(None, settings, RuntimeConfig("cpu", "bfloat16", backend="cpu", activations=activations)))[1]
        for activations in (None, "float")
    )
    assert rounded.tokenizer is not None
    comparison = Comparison()
    for text in bundled_texts(rounded.tokenizer, 512):
        comparison.add(logits(exact, text[:-1]), logits(rounded, text[:-1]), torch.tensor(text[1:]))
    divergence = comparison.result()
    assert divergence.kld_mean <= 1e-3
