"""Plug folders: a folder of modules in which the file name is the public name and the value on the command line.

A new family, scheme or source is one new file that ends in `PLUG = ...`. Names are read from the folder
without importing anything, so that help and completion stay quick; a plug is imported when it is asked for. A module
whose name begins with an underscore is no plug: what the plugs of a folder share.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TypeVar, cast

T = TypeVar("T")


class Plugs(Mapping[str, T]):
    """The plugs of one package, by name; the mapping's order is alphabetical."""

    def __init__(self, package: str) -> None:
        self._package = package

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return plug_names(self._package)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return cast("T", importlib.import_module(f"{self._package}.{name}").PLUG)


def plug_names(package: str) -> tuple[str, ...]:
    """Names of the plugs of a package, in alphabetical order; it is not imported, which may take long."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations is not None, package
    names = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return tuple(sorted(name for name in names if not name.startswith("_")))
