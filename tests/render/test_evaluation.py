"""What was measured of a text and beside another model is reported with protocol, noise, and what is missing of it."""

import dataclasses
import io
import math

import pytest
import torch

from gptfast_cli.core.bench.environment import environment
from gptfast_cli.core.evals.comparison import Compared, Comparisons, ModelSummary
from gptfast_cli.core.evals.divergence import Divergence
from gptfast_cli.core.evals.perplexity import Perplexity
from gptfast_cli.core.jobs.eval import Evaluation
from gptfast_cli.render.evaluation import KEYS, write_evaluation
from gptfast_cli.render.json import to_document

PERPLEXITY = Perplexity("llamacpp-512", 12.3456, "token", 0.0789, 0.0512, 5100, 20, 20)
DIVERGENCE = Divergence(
    tokens=31597, kld_mean=0.00028, kld_p99=0.0039, kld_max=0.088, same_top1=0.983, alpha=0.9965, ppl_reference=1.3582,
    ppl_other=1.3587, ppl_ratio=1.00033, ppl_ratio_low=1.000147, ppl_ratio_high=1.000513, rms_p_change=0.006,
    flips=0.01,
)  # fmt: skip
SIDE = ModelSummary("tiny:int4-g32", "int4", "float32", "cpu", "cpu", 4.63, 8, ("activations float",))
COMPARED = Compared(
    SIDE, ModelSummary("tiny", "plain", "float32", "cpu", "cpu", 32.0, 8, ()), None, DIVERGENCE, 437, 437, False
)


def evaluation(perplexity: Perplexity | None, comparison: Compared | None) -> Evaluation:
    about = environment(torch.device("cpu"), torch.float32)
    found = None if comparison is None else Comparisons((comparison,))
    return Evaluation(about, "tiny:int4-g32", "int4", 2_160_000, 0.1, None, perplexity, found, False)


def shown(perplexity: Perplexity | None = None, comparison: Compared | None = None) -> str:
    stream = io.StringIO()
    write_evaluation(evaluation(perplexity, comparison), stream)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())
    return " ".join(stream.getvalue().split())


def with_ratio(low: float | None, ratio: float, high: float | None) -> Compared:
    changed = dataclasses.replace(DIVERGENCE, ppl_ratio_low=low, ppl_ratio=ratio, ppl_ratio_high=high)
    return dataclasses.replace(COMPARED, divergence=changed)


def test_a_perplexity_stands_beside_its_protocol_and_both_errors() -> None:
    output = shown(PERPLEXITY)
    assert "llamacpp-512 12.3456 0.0789 5,100 20" in output and "± 0.0512 if each token stood for itself" in output
    assert "PARTIAL" not in output


def test_what_an_interrupt_left_is_marked() -> None:
    output = shown(dataclasses.replace(PERPLEXITY, n_windows_all=30))
    assert "PARTIAL" in output and "20 of 30" in output
    output = shown(comparison=dataclasses.replace(COMPARED, n_windows=100))
    assert "PARTIAL" in output and "100 of 437 windows" in output


@pytest.mark.parametrize(
    ("compared", "verdict"),
    [
        (COMPARED, "The reference, tiny, predicts the text better: perplexity x 1.000330 [1.000147, 1.000513]."),
        (with_ratio(0.9, 0.95, 0.99), "tiny:int4-g32 predicts the text better than the reference"),
        (with_ratio(0.98, 1.01, 1.03), "No difference in perplexity beyond the noise: x 1.0100 [0.9800, 1.0300]."),
        (with_ratio(None, math.inf, None), "has no interval"),
        (dataclasses.replace(COMPARED, is_itself=True), "tiny:int4-g32 was compared with itself."),
    ],
)
def test_what_is_said_of_both_is_what_the_interval_allows(compared: Compared, verdict: str) -> None:
    assert verdict in shown(comparison=compared)


def test_the_reference_and_the_text_are_named() -> None:
    output = shown(comparison=COMPARED)
    assert "tiny:int4-g32 (int4 float32 on cpu, cpu, activations float), against the reference, tiny (plain" in output
    assert "31,597 tokens of the bundled text" in output
    assert "the text by gptq-64" in shown(comparison=dataclasses.replace(COMPARED, protocol="gptq-64"))


def test_several_models_are_a_row_each_and_name_their_reference() -> None:
    stream = io.StringIO()
    second = dataclasses.replace(with_ratio(None, 1.5, None), model=dataclasses.replace(SIDE, name="org/model-Q4_K_M"))
    several = dataclasses.replace(evaluation(None, None), comparison=Comparisons((COMPARED, second)))
    write_evaluation(several, stream)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())
    output = " ".join(stream.getvalue().split())
    assert "tiny:int4-g32 4.63" in output and "org/model-Q4_K_M 4.63" in output and "1.5000 against the" in output
    assert "against the reference, tiny (plain float32" in output and "int4 float32" not in output


def test_a_number_without_bounds_is_null_in_the_document() -> None:
    infinite = dataclasses.replace(PERPLEXITY, value=math.inf)
    found = to_document(evaluation(infinite, with_ratio(None, math.inf, None)), KEYS)
    assert found["perplexity"]["value"] is None and found["divergence"]["ppl_ratio"] is None
    nothing = to_document(evaluation(None, None), KEYS)
    assert (nothing["perplexity"], nothing["divergence"], nothing["results"]) == (None, None, None)
