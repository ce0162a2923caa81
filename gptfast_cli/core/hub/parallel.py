"""Parallel download of many files, and removal of stale partial files."""

import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.hub.fetching import Fetched, fetch, note_of
from gptfast_cli.core.hub.lock import held_if_free
from gptfast_cli.core.hub.remote import RemoteFile, RetryPolicy
from gptfast_cli.core.hub.target_paths import Layout, TargetPaths

TASK: Final = "download"

_SECONDS_BETWEEN_EVENTS = 0.1
_SECONDS_TO_STOP = 0.5  # a thread that waits for a silent server is left to end with the process
_SMALL_BYTES = 1_000_000


class CancelledError(Exception):
    """The download was cancelled."""


def fetch_all(
    files: Sequence[RemoteFile], layout: Layout, *, n_workers: int, retry_policy: RetryPolicy
) -> Job[dict[str, Fetched]]:
    """Download files, at most `n_workers` at a time; yields Progress for each active file and for the total.

    The first failure cancels the others; their partial files are kept. Raises what `fetch` raises.
    """
    board = _Board(files)
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in sorted(files, key=_priority):
        waiting.put(file)
    threads = [
        threading.Thread(target=_work, args=(waiting, layout, board, retry_policy), daemon=True)
        for _ in range(min(n_workers, len(files)))
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not board.failures:
            yield from board.events()
            board.changed.wait(_SECONDS_BETWEEN_EVENTS)
        yield from board.events()
    finally:
        board.cancelled.set()
        stop_at = time.monotonic() + _SECONDS_TO_STOP
        for thread in threads:
            thread.join(max(0.0, stop_at - time.monotonic()))
    if board.failures:
        raise board.failures[0]
    return board.fetched


def _priority(file: RemoteFile) -> tuple[bool, int]:
    """Sort key: small files first (they reveal errors early), then the largest (no long tail at the end)."""
    return file.size > _SMALL_BYTES, -file.size


def _work(waiting: "queue.SimpleQueue[RemoteFile]", layout: Layout, board: "_Board", retry_policy: RetryPolicy) -> None:
    while not board.cancelled.is_set():
        try:
            file = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            board.fetched[file.name] = fetch(
                file, layout, watch=_FileWatch(file.name, board), retry_policy=retry_policy
            )
        except CancelledError:
            return
        except Exception as error:  # noqa: BLE001  # re-raised in the job's thread
            board.failures.append(error)
            board.cancelled.set()
        board.changed.set()


class _Board:
    """Progress shared between the worker threads and the job; each entry has one writer."""

    def __init__(self, files: Sequence[RemoteFile]) -> None:
        self._sizes: Mapping[str, int] = {file.name: file.size for file in files}
        self.done: dict[str, int] = {}
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.fetched: dict[str, Fetched] = {}
        self.failures: list[Exception] = []
        self.cancelled = threading.Event()
        self.changed = threading.Event()
        self._reported: dict[str, int] = {}

    def events(self) -> Iterator[Note | Progress]:
        """Events since the last call."""
        self.changed.clear()
        while not self.notes.empty():
            yield Note(self.notes.get())
        before = dict(self._reported)
        for name, n_bytes in self.done.copy().items():
            is_whole = n_bytes == self._sizes[name]
            if self._reported.get(name) != n_bytes and (
                not is_whole or name in self.fetched
            ):  # complete only once verified
                self._reported[name] = n_bytes
                yield Progress(TASK, n_bytes, self._sizes[name], "bytes", part=name)
        if self._reported != before:
            yield Progress(TASK, sum(self._reported.values()), sum(self._sizes.values()), "bytes")


class _FileWatch:
    def __init__(self, name: str, board: _Board) -> None:
        self._name = name
        self._board = board

    def at(self, done: int) -> None:
        self._board.done[self._name] = done
        self.pause(0)

    def note(self, text: str) -> None:
        self._board.notes.put(text)
        self._board.changed.set()

    def pause(self, seconds: float) -> None:
        if self._board.cancelled.is_set() or (seconds and self._board.cancelled.wait(seconds)):
            raise CancelledError


_KEPT_SECONDS = 14 * 24 * 3600.0


def sweep(layout: Layout, *, names: Collection[str], going_on: Collection[Path]) -> int:
    """Delete partial files that no download will continue; returns their number.

    These are partial files of older versions of `names`, and any that are two weeks old. Partial files in `going_on`
    and those that another process has locked are kept.
    """
    n_swept = 0
    for place in list(_stale(layout, names, going_on)):
        with held_if_free(place.lock) as is_free:
            if is_free:
                place.partial.unlink(missing_ok=True)
                note_of(place.partial).unlink(missing_ok=True)
                n_swept += 1
    for left in list(layout.left_by_others()):
        if _is_old(left):
            left.unlink(missing_ok=True)
            n_swept += 1
    return n_swept


def _stale(layout: Layout, names: Collection[str], going_on: Collection[Path]) -> Iterator[TargetPaths]:
    for place in layout.beginnings():
        if place.partial in going_on:
            continue
        if place.final.exists() or _name_noted(place.partial) in names or _is_old(place.partial):
            yield place


def _name_noted(partial: Path) -> str | None:
    try:
        return read_fields(note_of(partial)).text("name")
    except (OSError, CorruptError):
        return None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _KEPT_SECONDS
    except OSError:
        return True
