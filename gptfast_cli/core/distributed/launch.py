"""Starting the program once for each rank of this machine, by PyTorch's elastic launcher.

Each rank is the same command line in a process of its own, which finds the others as under `torchrun`. Rank 0 speaks; a
job that fails ends with one error, which names the rank that it arose on.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gptfast_cli.core.distributed.rank import FOLDER, Failure, as_error, failures_left
from gptfast_cli.core.errors import ExitCode, GptFastError

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_STOP = 5  # after which a rank that does not end when it is told to is killed


def launch(n_ranks: int, arguments: Sequence[str]) -> ExitCode:
    """Run the program with these arguments on ranks of this machine, until all have ended.

    Returns the code that a signal to this process stands for, else 0. Raises GptFastError where a rank failed.
    """
    logging.disable()  # what the launcher tells is told in our words
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_SECONDS_TO_STOP)
    with tempfile.TemporaryDirectory(prefix="gptfast-ranks-") as folder:
        os.environ[FOLDER] = folder
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n_ranks,
            run_id="gptfast",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any free port
            max_restarts=0,
            monitor_interval=_SECONDS_BETWEEN_LOOKS,
            local_addr="127.0.0.1",
        )
        try:
            elastic_launch(config, sys.executable)("-m", "gptfast_cli", *arguments)
        except SignalException as interruption:
            is_interrupt = interruption.sigval == signal.SIGINT
            return ExitCode.INTERRUPTED if is_interrupt else ExitCode.TERMINATED
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _told(failures_left(Path(folder)), codes)
    return ExitCode.OK


def _told(left: Mapping[int, Failure], codes: Mapping[int, int]) -> ExitCode:
    """Raise the error of the rank that failed by itself; return the code of one that ended as it was meant to."""
    own = {rank: failure for rank, failure in left.items() if not failure.is_lost}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if own:
        rank, first = next(iter(own.items()))
        is_of_all = len({(each.message, each.hint) for each in own.values()}) == 1 and len(own) > 1
        raise as_error(first.message if is_of_all else f"Rank {rank}: {first.message}", first.hint, first.exit_code)
    if killed:
        rank, number = next(iter(killed.items()))
        raise GptFastError(
            f"Rank {rank} was killed ({signal.Signals(number).name}), and the others ended with it.",
            "If the machine ran out of memory: fewer ranks, --mode int4, or a smaller --max-context.",
        )
    known = [code for code in codes.values() if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)]
    if known:
        return ExitCode(known[0])
    raise GptFastError(f"The ranks ended with {', '.join(f'{rank}: {code}' for rank, code in codes.items())}.")
