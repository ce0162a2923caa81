"""A model in a scheme that the CPU engine does not know runs on the reference, and a note says why."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from codebook_schemes import NF4_SCHEME
from cpu_engine import fed, reference, weights_of
from gptfast_cli.core.backends import CPU, REFERENCE
from gptfast_cli.core.backends import reference as reference_backend
from gptfast_cli.core.backends.cpu.views import SCHEMES
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.engine.build import ModelSource, RuntimeConfig, build
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.schemes import Weight, quantized_names, schemes
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.stopwatch import Stopwatch
from model_files import drained, settings_in

CPU_DEVICE = torch.device("cpu")


@pytest.fixture
def nf4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme nf4, registered as a plug for one test."""
    module = ModuleType("nf4")
    module.PLUG = NF4_SCHEME  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gptfast_cli.core.schemes.nf4", module)
    monkeypatch.setitem(vars(schemes), "_names", (*schemes, "nf4"))
    monkeypatch.setattr(reference_backend, "SCHEMES", {**reference_backend.SCHEMES, "nf4": NF4_SCHEME})


def in_nf4(weight: Weight) -> Weight:
    matrix = schemes[weight.scheme].dense(weight, torch.float32)
    out_features, in_features = matrix.shape
    groups = torch.nn.functional.pad(matrix, (0, -in_features % 32)).view(out_features, -1, 32)
    params = NF4_SCHEME.fitter(matrix).fit(groups)
    return NF4_SCHEME.pack(params.encode(groups), params, in_features)


def source_of(config: ModelConfig, weights: Mapping[str, Weight]) -> ModelSource:
    n_bytes = sum(each.n_bytes for each in weights.values())
    return ModelSource(config, lambda name, _: weights[name], lambda: weights, n_bytes, CPU_DEVICE, torch.float32)


@pytest.mark.usefixtures("nf4")
@torch.inference_mode()
def test_a_scheme_that_the_engine_lacks_runs_on_the_reference_and_one_note_says_why(tmp_path: Path) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    mixed = {name: in_nf4(each) if name.endswith(("qkv", "down")) else each for name, each in weights.items()}
    options = {"settings": settings_in(tmp_path), "watch": Stopwatch(CPU_DEVICE)}
    events, model = drained(build(source_of(config, mixed), RuntimeConfig(device="cpu"), **options))
    assert [event.text for event in events if isinstance(event, Note)] == [
        "The CPU engine does not run weights in nf4. Running on PyTorch's own operations, several times as slow."
    ]
    assert (model.backend, model.token_loop) == (REFERENCE, None)
    dense = {name: plain(schemes[each.scheme].dense(each, torch.float32)) for name, each in mixed.items()}
    assert torch.equal(fed(model, [1, 2, 3, 4], [3, 1]), fed(reference(config, dense), [1, 2, 3, 4], [3, 1]))
    with pytest.raises(UsageError, match="does not run weights in nf4") as refused:
        drained(build(source_of(config, mixed), RuntimeConfig(device="cpu", backend=CPU), **options))
    assert "int4, int8, plain" in refused.value.hint


def test_the_engine_knows_every_scheme_that_a_quantizer_writes() -> None:
    assert {"plain", *quantized_names()} <= SCHEMES
