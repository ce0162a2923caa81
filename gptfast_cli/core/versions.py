"""Version, commit, PyTorch and backends of this installation, found without loading PyTorch."""

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from gptfast_cli import __version__
from gptfast_cli.core.backends import CPU, REFERENCE
from gptfast_cli.core.backends.cpu.compiler import NoCompilerError, is_whole, library_file
from gptfast_cli.core.settings import Settings

_DISTRIBUTION = "gptfast"
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend, and in a few words what it is and whether it can run; `available` is False where it cannot."""

    name: str
    available: bool
    state: str


_REFERENCE = BackendState(REFERENCE, available=True, state="PyTorch operations, on every device")


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of the program, of PyTorch (None if it is not installed) and of Python, and the backends.

    commit: None where it is unknown, as for a package from an index
    """

    gptfast: str
    commit: str | None
    torch: str | None
    python: str
    backends: tuple[BackendState, ...]


def find_versions(settings: Settings) -> Versions:
    """What runs here; the kernel cache of the settings tells whether the CPU engine has been compiled."""
    return Versions(
        gptfast=__version__,
        commit=find_commit(),
        torch=_torch_version(),
        python=platform.python_version(),
        backends=(_cpu_state(settings.kernel_cache), _REFERENCE),
    )


def find_commit(checkout: Path = _CHECKOUT) -> str | None:
    """Commit of the package's own checkout, with `-dirty` where files were changed; else that which pip installed.

    A repository that the package is merely installed in does not count.
    """
    if not (checkout / ".git").exists():
        return _installed_commit()
    git = ["git", "--no-optional-locks", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}"]
    describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        described = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def _installed_commit() -> str | None:
    """The commit that `pip install git+URL` noted in direct_url.json (PEP 610)."""
    try:
        origin = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit: str | None = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return commit


def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def _cpu_state(kernel_cache: Path) -> BackendState:
    try:
        is_compiled = is_whole(library_file(kernel_cache))
    except NoCompilerError as error:
        return BackendState(CPU, available=False, state=error.message)
    state = "compiled for this machine" if is_compiled else "not compiled yet: the first run compiles it"
    return BackendState(CPU, available=True, state=f"C++ engine, {state}")
