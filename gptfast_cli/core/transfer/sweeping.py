"""Clearing away what dead downloads have left: beginnings that nobody will go on with."""

import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.transfer.lock import held_if_free
from gptfast_cli.core.transfer.partial import note_of
from gptfast_cli.core.transfer.place import Layout, Place

_KEPT_SECONDS = 14 * 24 * 3600.0


def sweep(layout: Layout, *, names: Collection[str], going_on: Collection[Path]) -> int:
    """Delete beginnings of other contents under one of `names`, and those left for two weeks; how many they were.

    going_on: beginnings that this download goes on with; what another process holds stays too
    """
    n_swept = 0
    for place in list(_given_up(layout, names, going_on)):
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


def _given_up(layout: Layout, names: Collection[str], going_on: Collection[Path]) -> Iterator[Place]:
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
