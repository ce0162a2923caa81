"""Folders of compiled code: nothing in them is run that another user may have written.

Whoever can write to such a folder decides what this process runs. So a folder or a file counts only where it is
neither a symbolic link, nor owned by anyone but this user and root, nor writable by group or others.
"""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

_MODE = 0o700


def why_untrusted(path: Path) -> str:
    """Why a file or folder may have been written by another user, to follow its name in a message; "" where not.

    Windows gives a profile's folders to its user alone, and says nothing in the mode. Raises OSError where there is
    nothing of that name.
    """
    if sys.platform == "win32":
        return ""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if found.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    return "can be written by other users" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def private_folder(wanted: Path, temporary: Path | None = None) -> tuple[Path, str]:
    """A folder that this user alone can write to, and "": `wanted`, made with mode 0700 where it is missing.

    Where `wanted` is not such a folder, another one in the system's temporary folder (`temporary`), and a sentence that
    says why. Its name is fixed, so that the next run finds it, unless somebody else has taken that name.
    """
    reason = _why_unusable(wanted)
    if not reason:
        return wanted, ""
    user = str(os.geteuid()) if sys.platform != "win32" else "user"
    other = (temporary or Path(tempfile.gettempdir())) / f"gptfast-{user}-{wanted.name}"
    if _why_unusable(other):
        other = Path(tempfile.mkdtemp(prefix=f"{other.name}-", dir=temporary))
        atexit.register(shutil.rmtree, other, ignore_errors=True)
    return other, f"{reason}. Compiled code is kept in {other} instead; GPTFAST_KERNELS can name another folder."


def _why_unusable(folder: Path) -> str:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=_MODE, exist_ok=True)
        reason = why_untrusted(folder)
    except OSError as error:
        return f"{folder}: cannot be used ({error.strerror})"
    if not reason and not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written to"
    return reason and f"{folder}: {reason}"
