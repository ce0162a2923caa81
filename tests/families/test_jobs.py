"""A folder that transformers saved goes the whole way: run in place, converted, quantized, and its own draft."""

import shutil
from pathlib import Path

import pytest

from families.random_models import CASES, saved_model
from generation_requests import changed, requested
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions
from gptfast_cli.core.jobs import generate
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
from gptfast_cli.core.jobs.generate import GenerateRequest
from gptfast_cli.core.jobs.quantize import QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import converted, drained, settings_in


@pytest.mark.parametrize("family", ["gemma3", "phi3", "qwen3"])
def test_it_runs_in_place_converted_and_in_int4_by_gptq_with_itself_as_draft(family: str, tmp_path: Path) -> None:
    folder, settings = tmp_path / "model", settings_in(tmp_path)
    tiny = bundled_folder("tiny")
    vocab_size = open_checkpoint(tiny).config.vocab_size
    saved_model(folder, family, next(iter(CASES[family])), vocab_size=vocab_size, tie_word_embeddings=False)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    asked = requested(
        GenerateRequest,
        prompt="Once upon a time",
        settings=settings,
        model=str(folder),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        sampling=Sampling(temperature=0),
        max_new_tokens=40,
    )

    def text(**changes: object) -> str:
        (sample,) = drained(generate.run(changed(asked, **changes)))[1].samples
        return sample.text

    in_place = text()
    assert len(set(in_place)) > 3
    name = converted(folder, settings).name
    assert text(model=name) == text(model=name, drafting=DraftOptions("self:int4")) == in_place
    quantized = drained(
        quantize(
            QuantizeRequest(
                settings,
                name,
                AllocationOptions("int4"),
                rounding="gptq",
                calibration=CalibrationOptions(limit=40),
                fidelity=True,
            )
        )
    )[1]
    assert quantized.fidelity is not None and quantized.fidelity.divergence.kld_mean < 0.2
    assert text(model=quantized.name)
