"""Python and C++ agree on every structure and constant that passes between them."""

import ctypes
import re
from pathlib import Path

import pytest

from cpu_engine import library
from gptfast_cli.core.backends.cpu import compiler
from gptfast_cli.core.backends.cpu.library import STRUCTURES, abi, check_abi

HEADER = (Path(compiler.__file__).parent / "native" / "abi.h").read_text(encoding="utf-8")


def declared_fields(structure: str) -> list[str]:
    """The names of a structure's fields in C++, in order."""
    found = re.search(rf"^struct {structure} \{{\n(.*?)^\}};", HEADER, re.MULTILINE | re.DOTALL)
    assert found is not None
    declarations = re.sub(r"//.*", "", found[1]).split(";")
    return [re.findall(r"\w+", name)[-1] for each in declarations if each.strip() for name in each.split(",")]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda each: each.__name__)
def test_the_fields_of_a_structure_have_the_names_and_the_order_of_the_header(
    structure: type[ctypes.Structure],
) -> None:
    assert [name for name, _ in structure._fields_] == declared_fields(structure.__name__)


def test_every_structure_of_the_header_has_its_mirror() -> None:
    assert {each.__name__ for each in STRUCTURES} == set(re.findall(r"^struct (\w+)", HEADER, re.MULTILINE))


@pytest.mark.parametrize("name", [*abi()])
def test_a_size_or_constant_that_differs_is_found_when_the_library_is_loaded(name: str) -> None:
    check_abi(library(), {name: abi()[name]})
    with pytest.raises(AssertionError, match=f"{name} is {abi()[name]} in C\\+\\+ and {abi()[name] + 1} in Python"):
        check_abi(library(), {name: abi()[name] + 1})


def test_a_name_that_the_library_does_not_export_is_found() -> None:
    with pytest.raises(AssertionError, match="Nothing"):
        check_abi(library(), {"Nothing": 8})
