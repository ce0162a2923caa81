"""What interrupted runs and older versions of gptfast left on this disk: found, and deleted.

Downloads and checkpoints that are unfinished would be resumed by the same command; whatever another process is writing
is left out. Snapshots in the Hugging Face cache are shared with other programs: `hf cache prune` deletes old ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.backends.cpu.compiler import NoCompilerError, library_file
from gptfast_cli.core.checkpoints.downloads import bucket_paths
from gptfast_cli.core.checkpoints.staging import leftovers, remove_leftover
from gptfast_cli.core.hub.fetching import note_of
from gptfast_cli.core.hub.lock import held_if_free
from gptfast_cli.core.hub.target_paths import HubCacheLayout, Layout, LocalLayout
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder or a file, with the files that belong to it; `lock`: held by the process that writes it."""

    what: str
    path: Path
    n_bytes: int
    beside: tuple[Path, ...] = ()
    lock: Path | None = None


def find_leftovers(settings: Settings) -> tuple[Leftover, ...]:
    """All that can be deleted, as no process is writing it."""
    return (*_checkpoints(settings), *_downloads(settings), *_kernels(settings))


def remove(leftover: Leftover) -> bool:
    """Delete it; False if a process has begun to write it again."""
    if leftover.path.is_dir():
        return remove_leftover(leftover.path)
    if leftover.lock is None:
        _unlink(leftover)
        return True
    with held_if_free(leftover.lock) as is_free:
        if is_free:
            _unlink(leftover)
        return is_free


def _unlink(leftover: Leftover) -> None:
    for path in (leftover.path, *leftover.beside):
        path.unlink(missing_ok=True)


def _checkpoints(settings: Settings) -> Iterator[Leftover]:
    for path in leftovers(settings.home / "checkpoints"):
        n_bytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        yield Leftover("unfinished checkpoint", path, n_bytes)


def _downloads(settings: Settings) -> Iterator[Leftover]:
    layouts: list[tuple[str, Layout]] = [
        (repo, HubCacheLayout(settings.hf_cache, repo, "", "")) for repo in _begun_repos(settings.hf_cache)
    ]
    layouts += [(str(source), LocalLayout(path, str(source))) for source, path in bucket_paths(settings.home)]
    for name, layout in layouts:
        for place in layout.beginnings():
            with held_if_free(place.lock) as is_free:
                if is_free:
                    what, n_bytes = f"unfinished download of {name}", place.partial.stat().st_size
                    yield Leftover(what, place.partial, n_bytes, (note_of(place.partial),), place.lock)


def _begun_repos(hf_cache: Path) -> list[str]:
    """Names of the repositories of which the cache has anything, also of those without a snapshot yet."""
    prefix = "models--"
    folders = sorted(hf_cache.glob(f"{prefix}*/blobs"))
    return [blobs.parent.name.removeprefix(prefix).replace("--", "/", 1) for blobs in folders]


def _kernels(settings: Settings) -> Iterator[Leftover]:
    """Compiled CPU engines of other versions, compilers or CPUs; one that is needed again is compiled again.

    A folder that GPTFAST_KERNELS names may be shared by several versions, and is left alone.
    """
    try:
        current = library_file(settings.kernel_cache)
    except NoCompilerError:
        return
    if settings.kernels is not None:
        return
    for path in sorted(settings.kernel_cache.glob("cpu-*.so")):
        if path != current:
            beside = (path.with_name(f"{path.name}.sha256"), path.with_suffix(".lock"))
            yield Leftover("CPU engine of another version", path, path.stat().st_size, beside)
