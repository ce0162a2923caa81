"""Devices, compute dtypes, threads, and the peak memory of this process."""

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from gptfast_cli.core.cpus import computing_cpus, most_threads
from gptfast_cli.core.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Floating dtypes by their name on the command line and in a manifest."""

AUTO = "auto"

KV_DTYPES = {"int8": torch.int8}
"""Dtypes that keys and values may be kept in beside the one that computes."""

_PROCESS = Path("/proc/self")


def pick_device(name: str = AUTO) -> torch.device:
    """The device of that name; `auto` takes an accelerator where there is one.

    Raises UsageError for a device that this machine or this build of PyTorch lacks.
    """
    present: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if name == AUTO:
        return torch.device(next(kind for kind, available in present.items() if available()))
    kind, _, index = name.partition(":")
    if kind not in present or (index and not index.isdecimal()):
        raise UsageError(f"There is no device called {name!r}.", f"Devices: {AUTO}, {', '.join(present)}.")
    if not present[kind]() or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"This machine has no device {name!r} that PyTorch {torch.__version__} can use.")
    return torch.device(name)


def pick_dtype(name: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: the one asked for, else the stored one, else float32 on a CPU without bfloat16.

    Raises UsageError for a name that is not one of DTYPES.
    """
    if name is not None:
        if name not in DTYPES:
            raise UsageError(f"There is no dtype called {name!r}.", f"Dtypes: {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cpu" and stored is not torch.float32 and not _cpu_has_bfloat16():
        return torch.float32
    # float16 is slow on every CPU; bfloat16 has the same size and its own instructions
    return torch.bfloat16 if device.type == "cpu" and stored is torch.float16 else stored


def pick_kv_dtype(name: str, computing: torch.dtype) -> torch.dtype:
    """The dtype to keep keys and values in; `auto` is the one that computes.

    Raises UsageError for a name that is none of these.
    """
    if name == AUTO:
        return computing
    if name not in KV_DTYPES:
        raise UsageError(f"--kv-dtype cannot be {name!r}.", f"It takes {AUTO}, {', '.join(KV_DTYPES)}.")
    return KV_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as the command line and the manifest spell it."""
    return str(dtype).removeprefix("torch.")


def computing_name(dtype: torch.dtype, kv_dtype: torch.dtype) -> str:
    """How a model computes, for a person: `bfloat16`, or `bfloat16 with int8 keys and values`."""
    kept = "" if kv_dtype is dtype else f" with {dtype_name(kv_dtype)} keys and values"
    return dtype_name(dtype) + kept


def set_threads(count: int | None) -> None:
    """Let PyTorch use `count` CPU threads; None takes as many as this process can compute with.

    Raises UsageError for a count below 1 or above `most_threads`.
    """
    if count is None:
        count = min(torch.get_num_threads(), computing_cpus())
    if not 1 <= count <= most_threads():
        raise UsageError(f"--threads must be from 1 to {most_threads()}, not {count}.")
    torch.set_num_threads(count)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def widest(device: torch.device) -> torch.dtype:
    """The floating dtype with the most digits that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers [n] as a tensor on a device, without waiting for what the device is still doing."""
    tensor = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def peak_memory_bytes(device: torch.device, process: Path = _PROCESS) -> int:
    """Most memory used since it was last reset: of the device for an accelerator, of the whole process for the CPU.

    process: its folder of proc(5), where there is one
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kib = _high_water_kib(process / "status")
    if kib is not None:
        return kib * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def reset_peak_memory(device: torch.device, process: Path = _PROCESS) -> None:
    """Let the peak be what is used now; on a CPU only Linux can do that, and elsewhere it stays that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        (process / "clear_refs").write_text("5")  # the peak of the resident set becomes its current size


def _high_water_kib(status: Path) -> int | None:
    """The peak that `reset_peak_memory` resets, where the system tells it."""
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    entry = next((line for line in lines if line.startswith("VmHWM:")), "")
    kib = entry.removeprefix("VmHWM:").removesuffix("kB").strip()
    return int(kib) if kib.isdecimal() else None


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
