"""The names under which a trace shows our work."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]  # PyTorch has no public word for it


def phase(name: str) -> AbstractContextManager[object]:
    """Work that a trace shows under this name; where none is being taken, nothing.

    Inside a compiled function names would fence off what is to be fused, so there are none.
    """
    if torch.compiler.is_compiling() or not _profiler_enabled():
        return nullcontext()
    return torch.profiler.record_function(name)
