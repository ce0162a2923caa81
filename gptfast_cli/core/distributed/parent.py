"""A process that ends when the one that started it does, however that ends: `kill -9` leaves no orphans.

On Linux the kernel sees to it (prctl(2), PR_SET_PDEATHSIG); elsewhere a thread looks once a second whether the parent
is still the same.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import MutableMapping

from gptfast_cli.core.distributed.rank import PARENT, TORCHRUN

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let a rank or a replica end with its parent; the variable is removed, so that no other child inherits it."""
    named = environment.pop(PARENT, None)
    if named is not None:
        _follow(int(named))
    elif TORCHRUN in environment:
        _follow(os.getppid())


def _follow(parent: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
        if os.getppid() != parent:  # it ended before that
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)
