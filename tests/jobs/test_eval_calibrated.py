"""A model that was calibrated on a text is not measured on it."""

from pathlib import Path

import pytest

from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.comparison import ReferenceRequest
from gptfast_cli.core.evals.held_out import measured_content
from gptfast_cli.core.evals.perplexity import TextOptions
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
from gptfast_cli.core.jobs.eval import EvalRequest, run
from gptfast_cli.core.jobs.quantize import QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import drained, settings_in


@pytest.fixture
def calibrated(tmp_path: Path) -> str:
    """A model that has learned from the middle of the bundled held-out text."""
    text = tmp_path / "learned.txt"
    text.write_text(measured_content(None)[20_000:40_000])
    request = QuantizeRequest(
        settings_in(tmp_path),
        model="tiny-draft",
        storage=AllocationOptions("int4"),
        rounding="gptq",
        calibration=CalibrationOptions(text=str(text)),
        fidelity=False,
    )
    return drained(quantize(request))[1].name


@pytest.mark.parametrize(("model", "against"), [("calibrated", "tiny-draft"), ("tiny-draft", "calibrated")])
def test_neither_of_two_models_may_have_learned_from_the_text(
    calibrated: str, tmp_path: Path, model: str, against: str
) -> None:
    names = {"calibrated": calibrated, "tiny-draft": "tiny-draft"}
    settings, runtime = settings_in(tmp_path), RuntimeConfig("cpu", "float32", 1)
    with pytest.raises(UsageError, match=r"The bundled held-out text: overlaps with .* \(learned\.txt\)"):
        drained(run(EvalRequest(settings, names[model], runtime, against=ReferenceRequest(names[against]))))


def test_a_file_that_a_model_has_learned_from_is_refused_and_another_is_not(calibrated: str, tmp_path: Path) -> None:
    settings, runtime = settings_in(tmp_path), RuntimeConfig("cpu", "float32", 1)
    fresh = tmp_path / "fresh.txt"
    fresh.write_text((Path(__file__).parents[2] / "README.md").read_text()[:6000])
    options = [TextOptions(file, "llamacpp-256") for file in (tmp_path / "learned.txt", fresh)]
    with pytest.raises(UsageError, match=r"learned\.txt: overlaps with"):
        drained(run(EvalRequest(settings, calibrated, runtime, text=options[0])))
    assert drained(run(EvalRequest(settings, calibrated, runtime, text=options[1])))[1].perplexity is not None
