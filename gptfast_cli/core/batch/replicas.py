"""Data parallelism for files of prompts: replica processes share the rows; rows of a dead replica are redone."""

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch

from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.distributed.rank import PARENT
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.events import Job, Note, Record

VARIABLE: Final = "GPTFAST_REPLICA"
"""Environment variable: the JSON file with this replica's part. The command line is that of the parent."""


@dataclass(frozen=True, slots=True)
class ReplicaPart:
    """The lines of the rows to answer, and the seed of the run."""

    lines: Sequence[int]
    seed: int


def write_part(part: ReplicaPart, file: Path) -> None:
    """Write the part of a replica."""
    file.write_text(json.dumps(asdict(part)), encoding="utf-8")


def replica_part(environment: Mapping[str, str] = os.environ) -> ReplicaPart | None:
    """The part of this process; None if it is not a replica."""
    file = environment.get(VARIABLE)
    return None if file is None else ReplicaPart(**json.loads(Path(file).read_text(encoding="utf-8")))


_MOST_VAIN_STARTS = 2  # consecutive starts of a replica without an answer
_SECONDS_TO_STOP = 5.0
_SHOWN_LINES = 3


@dataclass(frozen=True, slots=True)
class Replicas:
    """Number of replicas, and the command line that starts one: that of this process."""

    n: int
    command: tuple[str, ...]


@dataclass(slots=True)
class _Replica:
    """A replica; `missing` are the line numbers of its unanswered rows."""

    number: int
    missing: set[int]
    process: "subprocess.Popen[str] | None" = None
    listener: threading.Thread | None = None
    n_vain_starts: int = 0
    stderr: "deque[str]" = field(default_factory=lambda: deque(maxlen=_SHOWN_LINES))


def answered(lines: Sequence[int], replicas: Replicas, seed: int) -> Job[None]:
    """Yield the record of each row as soon as it is received.

    Raises GptFastError if a replica ends twice in a row without answering anything.
    """
    team = [_Replica(n, set(lines[n :: replicas.n])) for n in range(min(replicas.n, len(lines)))]
    answers: queue.SimpleQueue[tuple[_Replica, str | None]] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="gptfast-replicas-") as folder, contextlib.ExitStack() as at_the_end:
        for replica in team:
            at_the_end.callback(_stop, replica)
            _start(replica, replicas, seed, Path(folder), answers)
        while any(replica.process is not None for replica in team):
            replica, text = answers.get()
            if text is None:
                yield from _ended(replica)
                if replica.missing:
                    _start(replica, replicas, seed, Path(folder), answers)
                continue
            record = Record(json.loads(text))
            line = record.fields["line"]
            assert isinstance(line, int)
            replica.missing.discard(line)
            replica.n_vain_starts = 0
            yield record


def _start(
    replica: _Replica,
    replicas: Replicas,
    seed: int,
    folder: Path,
    answers: "queue.SimpleQueue[tuple[_Replica, str | None]]",
) -> None:
    part = folder / f"{replica.number}.json"
    write_part(ReplicaPart(sorted(replica.missing), seed), part)
    replica.n_vain_starts += 1
    replica.process = subprocess.Popen(  # noqa: S603  # our own command line
        replicas.command,
        env={
            **os.environ,
            **_share_of_machine(replica.number, replicas.n),
            VARIABLE: str(part),
            PARENT: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the parent only
    )
    replica.listener = threading.Thread(target=_listen, args=(replica, replica.process, answers), daemon=True)
    replica.listener.start()


def _listen(
    replica: _Replica,
    process: "subprocess.Popen[str]",
    answers: "queue.SimpleQueue[tuple[_Replica, str | None]]",
) -> None:
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = threading.Thread(target=replica.stderr.extend, args=(process.stderr,), daemon=True)
        errors.start()
        for text in process.stdout:
            if text.endswith("\n"):  # otherwise the line is truncated
                answers.put((replica, text))
        errors.join()
    answers.put((replica, None))


def _ended(replica: _Replica) -> Iterator[Note]:
    """Report an ended replica. Raises GptFastError if restarting it is pointless."""
    assert replica.process is not None
    code, replica.process = replica.process.returncode, None
    if not replica.missing:
        return
    reason = "".join(replica.stderr).strip() or f"it ended with {code}"
    if replica.n_vain_starts >= _MOST_VAIN_STARTS:
        raise GptFastError(
            f"Replica {replica.number} answers nothing:\n{reason.removeprefix('error: ')}",
            "Run it without --replicas to see what is wrong.",
        )
    yield Note(f"Replica {replica.number} is gone ({reason.splitlines()[-1]}); {len(replica.missing)} rows again.")


def _stop(replica: _Replica) -> None:
    if replica.process is not None:
        replica.process.terminate()
        try:
            replica.process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            replica.process.kill()
    if replica.listener is not None:
        replica.listener.join()


def _share_of_machine(number: int, n: int) -> Mapping[str, str]:
    """Environment of a replica: one GPU each if there are several, else a share of the cores unless threads are set."""
    n_gpus = torch.cuda.device_count()
    if n_gpus > 1:
        return {"CUDA_VISIBLE_DEVICES": str(number % n_gpus)}
    threads = str(max(1, computing_cpus() // n))
    return {"GPTFAST_THREADS": os.environ.get("GPTFAST_THREADS", threads)}
