"""Names of tasks as a person gives them: whole, as patterns, or nearly right."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from gptfast_cli.core.errors import NotFoundError

_MOST_NEIGHBOURS: Final = 6


def resolved(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks that names and patterns stand for; raises NotFoundError for one that is none, with those near it."""
    found: dict[str, None] = {}
    for name in names:
        matching = [each for each in known if fnmatchcase(each, name)]
        if not matching:
            raise NotFoundError(
                f"There is no task called {name!r}.{_neighbours(name, known)}",
                "--tasks takes all words up to the next option; a MODEL stands before it, or behind -m.",
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _neighbours(name: str, known: Sequence[str]) -> str:
    """A sentence with the names that are like it, or nothing."""
    alike = difflib.get_close_matches(name, known, _MOST_NEIGHBOURS)
    inside = [each for each in known if name and name in each]
    names = list(dict.fromkeys([*alike, *inside]))[:_MOST_NEIGHBOURS]
    return f" Near it: {', '.join(names)}." if names else ""
