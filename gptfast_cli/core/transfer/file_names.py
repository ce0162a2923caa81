"""Names that strangers gave to files, before anything is written under them.

They are held to the rules of every system alike: what is fetched on one may be read on another.
"""

import re
from typing import Final

from gptfast_cli.core.errors import CorruptError

_MOST_BYTES = 255  # of one part, on nearly every file system
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_WINDOWS_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_NOT_IN_WINDOWS: Final = frozenset('<>:"|?*')


def check_file_name(name: str, source: str) -> None:
    """Raise CorruptError where a file of that name would land outside of its folder, or nowhere on some system."""
    reason = _against(name)
    if reason is not None:
        raise CorruptError(
            f"{source}: holds a file whose name is not safe: {reason}.\n{_shown(name)}",
            "Nothing was written. Leave it out with --exclude, or tell the owner.",
        )


def is_file_name(name: str) -> bool:
    """Whether a file of that name can be written on every system, inside of its folder."""
    return _against(name) is None


def _against(name: str) -> str | None:
    """What stands against a name; None where nothing does."""
    parts = name.replace("\\", "/").split("/")
    reasons = {
        "it is an absolute path": name.startswith(("/", "\\")) or _DRIVE.match(name),
        "it leads out of the folder": ".." in parts,
        "it is no plain path": "\\" in name or any(part in ("", ".") for part in parts),
        "Windows reserves it for a device": any(_WINDOWS_DEVICE.fullmatch(part) for part in parts),
        "it has characters that not every system takes": any(
            not char.isprintable() or char in _NOT_IN_WINDOWS for char in name
        )
        or any(part.endswith((".", " ")) for part in parts),
        "it is too long": any(len(part.encode(errors="replace")) > _MOST_BYTES for part in parts),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _shown(name: str) -> str:
    shown = ascii(name)
    return shown if len(shown) <= 120 else f"{shown[:120]} …"
