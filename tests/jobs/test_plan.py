"""`bench --plan` as a job: whose figures count, what is measured and what is not, and what is refused before that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_machine import BYTES_PER_SECOND, Machine
from gptfast_cli.core.bench.environment import Clock
from gptfast_cli.core.bench.plan import COMPILED, LINK_LATENCY, NATIVE, Efficiency, Hardware
from gptfast_cli.core.bench.workload import CaseOptions
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.jobs import quantize
from gptfast_cli.core.jobs.bench import Instruments
from gptfast_cli.core.jobs.plan import BenchPlan, HardwareOptions, PlanRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import cached_repo, drained, settings_in

A100 = HardwareOptions(bandwidth=1700, memory=80, link_bandwidth=200)
SETTINGS = settings_in(Path("unused"))


def no_probe(device: torch.device, now: Clock) -> Machine:
    raise AssertionError("nothing is to be measured")


def plan(model: str, instruments: Instruments = Instruments(probe=no_probe), **changes: Any) -> BenchPlan:
    request = PlanRequest(SETTINGS, model, hardware=A100, runtime=RuntimeConfig(threads=1))
    return drained(run(replace(request, **changes), instruments))[1]


def contexts(planned: BenchPlan) -> list[int]:
    return [row.context for row in planned.rows]


def test_a_described_machine_is_taken_at_its_word() -> None:
    planned = plan(
        "llama-2-70b", allocation=AllocationOptions("int4"), tps=(1, 8), cases=CaseOptions(batch_sizes=(1, 4))
    )
    assert planned.hardware == Hardware(1.7e12, 80_000_000_000, 200e9, LINK_LATENCY)
    assert (planned.hardware.is_measured, planned.efficiency, planned.dtype) == (False, COMPILED, "bfloat16")
    assert (planned.scheme, planned.head_scheme) == ("int4-g32", "int8")
    assert [(row.tp, row.batch_size) for row in planned.rows] == [(1, 1), (1, 4), (8, 1), (8, 4)]
    assert all(row.fits and row.tok_s for row in planned.rows)


def test_this_machine_is_measured_where_no_other_is_described() -> None:
    planned = plan(
        "tiny", Machine().instruments(), hardware=HardwareOptions(), runtime=RuntimeConfig(device="cpu", threads=1)
    )
    assert planned.hardware.bandwidth == BYTES_PER_SECOND and planned.hardware.is_measured
    assert planned.hardware.memory_bytes is not None and planned.hardware.memory_bytes > 0
    assert planned.efficiency == NATIVE
    (row,) = planned.rows
    assert row.tok_s == pytest.approx(NATIVE.share("plain") * BYTES_PER_SECOND / row.step_bytes)


def test_keys_and_values_are_planned_in_the_dtype_that_they_would_be_kept_in() -> None:
    usual, in_int8 = (plan("llama-2-7b", runtime=RuntimeConfig(threads=1, kv_dtype=kv)) for kv in ("auto", "int8"))
    assert (usual.kv_dtype, in_int8.kv_dtype) == ("bfloat16", "int8")
    assert in_int8.rows[0].kv_bytes < 0.75 * usual.rows[0].kv_bytes
    assert in_int8.rows[0].step_bytes < usual.rows[0].step_bytes


def test_a_share_that_was_measured_replaces_all_that_is_assumed() -> None:
    planned = plan("llama-2-7b", allocation=AllocationOptions("int4"), efficiency=0.5)
    assert planned.efficiency == Efficiency({"plain": 0.5})
    assert planned.rows[0].mbu == pytest.approx(0.5)


def test_the_usual_length_is_cut_to_what_a_model_can_hold_and_an_asked_one_is_not() -> None:
    assert contexts(plan("llama-2-7b")) == [640]
    assert contexts(plan("tiny")) == [512]
    assert contexts(plan("llama-2-7b", cases=CaseOptions((100, 200), (), (0, 50)))) == [100, 150, 200, 250]
    with pytest.raises(UsageError, match="A context of 513 tokens exceeds the maximum of tiny, 512"):
        plan("tiny", cases=CaseOptions((512,), (1,)))
    with pytest.raises(UsageError, match="no tokens"):
        plan("tiny", cases=CaseOptions((), ()))


def test_a_model_is_planned_as_it_is_stored_or_as_it_would_be_quantized(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    quantizing = quantize.QuantizeRequest(settings, "tiny", AllocationOptions("int4"), fidelity=False)
    path = drained(quantize.run(quantizing))[1].path
    as_stored = plan(str(path), settings=settings)
    as_asked = plan("tiny", settings=settings, allocation=AllocationOptions("int4"))
    assert as_stored.rows == as_asked.rows
    assert as_stored.rows[0].weight_bytes == open_checkpoint(path).n_bytes
    with pytest.raises(UsageError, match="is already quantized"):
        plan(str(path), settings=settings, allocation=AllocationOptions("int8"))


def test_a_repository_in_the_cache_is_planned_in_place(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    cached_repo(settings.hf_cache, "org/name")
    planned = plan("org/name", settings=settings, cases=CaseOptions((8,), ()))
    assert (planned.model, planned.scheme, planned.dtype) == ("org/name", "plain", "float32")
    assert planned.rows[0].weight_bytes == 4 * planned.n_params
    halved = plan("org/name", settings=settings, cases=CaseOptions((8,), ()), runtime=RuntimeConfig(dtype="bfloat16"))
    assert 2 * halved.rows[0].weight_bytes == planned.rows[0].weight_bytes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tps": (1, 3)}, "--tp 3: 32 query heads"),
        ({"tps": (0,)}, "--tp must be at least 1"),
        ({"tps": ()}, "--tp must be at least 1"),
        ({"cases": CaseOptions(batch_sizes=(0,))}, "--batch-size must be at least 1"),
        ({"cases": CaseOptions(depths=(-1,))}, "--depth must be at least 0"),
        ({"cases": CaseOptions(prompt_lens=(-5,))}, "--prompt-len must be at least 1"),
        ({"hardware": HardwareOptions(bandwidth=0.0)}, "--device-bandwidth must be above 0"),
        ({"hardware": HardwareOptions(memory=float("nan"))}, "--device-memory must be above 0"),
        ({"hardware": HardwareOptions(link_bandwidth=float("inf"))}, "--link-bandwidth must be above 0"),
        ({"hardware": HardwareOptions(link_latency=-1.0)}, "--link-latency must be 0 or more"),
        ({"efficiency": 1.5}, "--efficiency is a share from 0 to 1"),
        ({"runtime": RuntimeConfig(dtype="int3")}, "no dtype called"),
        ({"allocation": AllocationOptions("int3")}, "no scheme called"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan("llama-2-7b", **({"hardware": HardwareOptions()} | changes))


def test_a_name_that_is_nearly_a_shape_is_reported_so() -> None:
    with pytest.raises(NotFoundError) as missing:
        plan("llama-2-7")
    assert missing.value.hint is not None and "llama-2-7b" in missing.value.hint
