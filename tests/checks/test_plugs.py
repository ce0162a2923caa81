"""Every file in a plug folder is a plug: it imports, has the name it goes by, and offers what its protocol asks for."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gptfast_cli.core.checkpoints.methods import Method, methods
from gptfast_cli.core.checkpoints.sources import Source, sources
from gptfast_cli.core.evals.protocols import Windowing, protocols
from gptfast_cli.core.evals.tasks.sources import Source as TaskSource
from gptfast_cli.core.evals.tasks.sources import sources as task_sources
from gptfast_cli.core.families import Family, families
from gptfast_cli.core.quantize.quantizers import Quantizer, quantizers
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.schemes import Scheme, schemes
from gptfast_cli.core.tokenizers.formats import TokenizerFormat, formats

FOLDERS: dict[str, tuple[Plugs[Any], type]] = {
    "families": (families, Family),
    "methods": (methods, Method),
    "protocols": (protocols, Windowing),
    "roundings": (quantizers, Quantizer),
    "schemes": (schemes, Scheme),
    "sources": (sources, Source),
    "sources of tasks": (task_sources, TaskSource),
    "tokenizer formats": (formats, TokenizerFormat),
}


def plugs() -> Iterator[Any]:
    for folder, (plugs_of_folder, protocol) in FOLDERS.items():
        for name in plugs_of_folder:
            yield pytest.param(plugs_of_folder, protocol, name, id=f"{folder}/{name}")


@pytest.mark.parametrize(("folder", "protocol", "name"), list(plugs()))
def test_a_plug_offers_what_its_protocol_asks_for(folder: Plugs[Any], protocol: type, name: str) -> None:
    plug = folder[name]
    for member in _members(protocol):
        assert hasattr(plug, member), f"{name} lacks {member}"
        asked, given = getattr(protocol, member, None), getattr(plug, member)
        if callable(asked):
            assert list(inspect.signature(given).parameters) == list(inspect.signature(asked).parameters)[1:]


@pytest.mark.parametrize(("folder", "protocol", "name"), list(plugs()))
def test_a_plugs_name_can_stand_on_a_command_line_and_in_a_file_name(
    folder: Plugs[Any], protocol: type, name: str
) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_known_without_importing_a_plug(folder: str) -> None:
    assert FOLDERS[folder][0], f"{folder} is empty"


def test_a_name_that_is_no_plug_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        families["no_such_family"]


def _members(protocol: type) -> set[str]:
    declared = set(vars(protocol)) | set(inspect.get_annotations(protocol))
    return {name for name in declared if not name.startswith("_")}
