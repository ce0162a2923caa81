"""A model runs where and in what was asked for, else in what the machine is quick at."""

from pathlib import Path

import pytest
import torch

from gptfast_cli.core import device
from gptfast_cli.core.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("stored", "where", "has_bfloat16", "expected"),
    [
        (torch.float32, CPU, True, torch.float32),
        (torch.bfloat16, CPU, True, torch.bfloat16),
        (torch.float16, CPU, True, torch.bfloat16),
        (torch.bfloat16, CPU, False, torch.float32),
        (torch.float16, CPU, False, torch.float32),
        (torch.bfloat16, CUDA, False, torch.bfloat16),
        (torch.float16, CUDA, False, torch.float16),
    ],
)
def test_the_stored_dtype_is_kept_unless_the_cpu_is_slow_at_it(
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    where: torch.device,
    has_bfloat16: bool,
    expected: torch.dtype,
) -> None:
    capabilities = {"avx512_bf16": has_bfloat16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.pick_dtype(None, stored, where) is expected
    assert device.pick_dtype("float16", stored, where) is torch.float16


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device().type == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.pick_device("cuda:0").index == 0
    for name in ("cuda:1", "cuda:x", "tpu", ""):
        with pytest.raises(UsageError, match=r"no device"):
            device.pick_device(name)


def test_a_dtype_has_the_same_name_in_and_out() -> None:
    assert {name: device.dtype_name(dtype) for name, dtype in device.DTYPES.items()} == {n: n for n in device.DTYPES}


def test_peak_memory_grows_with_what_is_used() -> None:
    before = device.peak_memory_bytes(CPU)
    used = torch.ones(before // 4)  # as much as ever before, on top of what is there
    assert used.nbytes > 50_000_000
    assert device.peak_memory_bytes(CPU) > before


def test_the_peak_can_be_taken_of_a_part_of_the_work() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    used = torch.ones(device.peak_memory_bytes(CPU) // 4)
    high = device.peak_memory_bytes(CPU)
    n_bytes = used.nbytes
    del used
    assert device.peak_memory_bytes(CPU) >= high - 1_000_000
    device.reset_peak_memory(CPU)
    assert device.peak_memory_bytes(CPU) < high - n_bytes // 2


def test_where_the_system_has_no_peak_to_reset_it_is_that_of_the_process(tmp_path: Path) -> None:
    device.reset_peak_memory(CPU, tmp_path / "missing")
    assert device.peak_memory_bytes(CPU, tmp_path / "missing") > 50_000_000


def test_a_thread_count_that_makes_no_sense_is_refused_before_a_thread_is_started() -> None:
    before = torch.get_num_threads()
    for count in (100_000, 2**40):
        with pytest.raises(UsageError, match=f"--threads must be from 1 to [0-9]+, not {count}"):
            device.set_threads(count)
    assert torch.get_num_threads() == before
