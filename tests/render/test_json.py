"""Documents from dataclasses: the keys that a schema declares, in their order, with values that JSON can hold."""

import importlib
import io
import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from gptfast_cli.render.json import to_document, write_document


@dataclass(frozen=True)
class Spread:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    n_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.n_bytes / self.seconds


@dataclass(frozen=True)
class Whole:
    name: str
    path: Path
    part: Part | None
    alpha: Spread | None
    tau: dict[int, Spread]
    ratios: tuple[float, ...] = ()


WHOLE = Whole("a", Path("b/c"), Part(4, 2.0), Spread(0.5, 0.4, 0.6), {2: Spread(1.5, 1.0, 2.0)}, (math.nan, 1.0))


def test_fields_are_keys_paths_strings_and_numbers_without_a_value_null() -> None:
    assert to_document(WHOLE) == {
        "name": "a",
        "path": "b/c",
        "part": {"n_bytes": 4, "seconds": 2.0},
        "alpha": {"value": 0.5, "low": 0.4, "high": 0.6},
        "tau": {"2": {"value": 1.5, "low": 1.0, "high": 2.0}},
        "ratios": [None, 1.0],
    }


def test_declared_keys_rename_omit_splice_and_add_in_their_order() -> None:
    keys = {Whole: "title=name *part -seconds each=part", Part: "* rate"}
    document = to_document(WHOLE, keys)
    assert document == {"title": "a", "n_bytes": 4, "rate": 2.0, "each": {"n_bytes": 4, "seconds": 2.0, "rate": 2.0}}
    assert list(document) == ["title", "n_bytes", "rate", "each"]


def test_an_interval_is_a_number_and_its_bounds_also_in_a_mapping_and_where_there_is_none() -> None:
    keys = {Whole: "alpha+range tau+range n=part.n_bytes"}
    assert to_document(WHOLE, keys) == {
        "alpha": 0.5,
        "alpha_range": [0.4, 0.6],
        "tau": {"2": 1.5},
        "tau_range": {"2": [1.0, 2.0]},
        "n": 4,
    }
    empty = Whole("a", Path("b"), None, None, {})
    assert to_document(empty, keys) == {"alpha": None, "alpha_range": None, "tau": {}, "tau_range": {}, "n": None}


def test_a_key_that_no_field_has_is_an_error() -> None:
    with pytest.raises(AttributeError):
        to_document(WHOLE, {Whole: "nosuch"})


def test_a_key_with_a_question_mark_is_left_out_where_it_is_none() -> None:
    keys = {Whole: "name part? alpha?"}
    assert list(to_document(WHOLE, keys)) == ["name", "part", "alpha"]
    assert list(to_document(replace(WHOLE, part=None), keys)) == ["name", "alpha"]


def test_a_document_is_a_line_of_ascii_and_opens_with_its_schema() -> None:
    stream = io.StringIO()
    write_document("gptfast.test/1", {"name": "é", "value": math.inf}, stream)
    assert stream.getvalue() == '{"schema": "gptfast.test/1", "name": "\\u00e9", "value": null}\n'
    assert json.loads(stream.getvalue())["value"] is None


@pytest.mark.parametrize("module", ["bench", "checkpoints", "evaluation", "plan", "report.document"])
def test_every_declared_key_names_a_field_or_a_property(module: str) -> None:
    content = vars(importlib.import_module(f"gptfast_cli.render.{module}"))
    keys = content.get("KEYS") or content["_KEYS"]
    assert keys
    for kind, words in keys.items():
        names = {field.name for field in fields(kind)} | set(dir(kind))
        for word in words.split():
            path = word.removesuffix("+range").partition("=")[2] or word.removesuffix("+range").lstrip("*-")
            assert path.split(".")[0] in {*names, ""}, f"{kind.__name__} has no {path}"
