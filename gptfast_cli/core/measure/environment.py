"""Where a result was measured: what has to stand beside a number for anyone to judge it, and nothing private."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import gptfast_cli
from gptfast_cli.core.cpus import available_cpus
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.measure.machine import cpu_model
from gptfast_cli.core.memory import memory_bytes

_CHECKOUT = Path(gptfast_cli.__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Environment:
    """Program, machine and moment; None where the machine does not say. It names no host, user or folder.

    commit:           of the checkout that runs, with `-dirty` where files of it were changed since
    instruction_sets: of the CPU, that PyTorch knows of
    gpu:              name of the device where it is no CPU
    ranks:            processes that hold the model together
    threads:          CPU threads that PyTorch uses in each, of the `n_cpus` that the process may run on
    date:             UTC, ISO 8601
    """

    gptfast: str
    commit: str | None
    python: str
    torch: str
    os: str
    cpu: str | None
    n_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    device: str
    gpu: str | None
    ranks: int
    threads: int
    dtype: str
    date: str


def environment(device: torch.device, dtype: torch.dtype, n_ranks: int = 1) -> Environment:
    """The environment of a measurement that is about to begin, on a device and in the dtype that it computes in."""
    return Environment(
        gptfast=gptfast_cli.__version__,
        commit=_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_model(),
        n_cpus=available_cpus(),
        instruction_sets=tuple(sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)),
        memory_bytes=memory_bytes(),
        device=device.type,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        ranks=n_ranks,
        threads=torch.get_num_threads(),
        dtype=dtype_name(dtype),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _commit() -> str | None:
    """Only the package's own checkout is asked: it may be installed somewhere inside of a stranger's."""
    git = ["git", "--no-optional-locks", f"--git-dir={_CHECKOUT / '.git'}", f"--work-tree={_CHECKOUT}"]
    describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        described = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
