"""The report as JSON: the keys that others build on, and no value left out."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from io import StringIO
from typing import Any

import pytest
from report_variants import CASES, LONG, WILD, interrupted, with_gaps

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.report.document import write_json
from sample_report import sample_report


def text(of: DraftReport) -> str:
    stream = StringIO()
    write_json(of, "gptfast speculate", stream)
    return stream.getvalue()


def document(of: DraftReport) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read: dict[str, Any] = json.loads(text(of), parse_constant=refuse)
    return read


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (leaf for each in value.values() for leaf in leaves(each))
    elif isinstance(value, list | tuple):
        yield from (leaf for each in value for leaf in leaves(each))
    else:
        yield value


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_line_of_ascii_with_schema_and_verdict(case: str) -> None:
    written = text(CASES[case])
    assert written.isascii()
    assert written.index("\n") == len(written) - 1
    read = document(CASES[case])
    assert read["schema"] == "gptfast.speculate/1"
    assert read["verdict"] == CASES[case].verdict
    assert read["command"] == "gptfast speculate"


@pytest.mark.parametrize("case", ["sample", "one", "many", "long names"])
def test_drafts_have_the_keys_and_types_that_others_build_on(case: str) -> None:
    read = document(CASES[case])
    assert len(read["drafts"]) == len(CASES[case].drafts)
    for draft in read["drafts"]:
        assert isinstance(draft["draft"], str)
        assert is_number(draft["temperature"])
        assert is_number(draft["alpha"])
        assert draft["tau"]
        assert all(key.isdecimal() and is_number(value) for key, value in draft["tau"].items())
        for cell in draft["grid"]:
            assert type(cell["k"]) is int
            assert type(cell["batch_size"]) is int
            assert is_number(cell["predicted"])
            assert cell["measured"] is None or is_number(cell["measured"])


def test_numbers_are_those_of_the_report_with_their_intervals_beside_them() -> None:
    given, read = sample_report().drafts[0], document(sample_report())["drafts"][0]
    assert (read["draft"], read["temperature"], read["alpha"]) == (given.draft, 0.0, given.alpha.value)
    assert read["alpha_range"] == [given.alpha.low, given.alpha.high]
    assert read["tau"] == {str(k): tau.value for k, tau in given.tau.items()}
    assert read["tau_range"]["3"] == [given.tau[3].low, given.tau[3].high]
    cell, shown = given.grid[3], read["grid"][3]
    assert cell.measured is not None
    assert (shown["predicted"], shown["measured"]) == (cell.predicted.value, cell.measured.value)
    assert shown["predicted_range"] == [cell.predicted.low, cell.predicted.high]
    assert shown["measured_range"] == [cell.measured.low, cell.measured.high]
    assert (shown["error"], shown["break_even"]) == (cell.error, cell.break_even)
    assert shown["round_s"] == {**asdict(cell.cost), "total": cell.cost.total}
    assert read["grid"][0]["measured"] is None
    assert read["grid"][0]["measured_range"] is None


def test_every_value_of_the_report_is_in_the_document() -> None:
    assert set(leaves(asdict(sample_report()))) <= set(leaves(document(sample_report())))


def test_what_is_no_finite_number_is_null() -> None:
    read = document(with_gaps())
    first = read["drafts"][0]
    assert first["alpha"] is None
    assert first["alpha_range"] == [0.0, 1.0]
    assert first["grid"][0]["ceiling"] is None
    assert first["grid"][0]["break_even"] is None
    assert first["acceptance"][1:] == [
        {"conditional": None, "unconditional": 0.0},
        {"conditional": None, "unconditional": None},
    ]
    assert read["median_error"] is None
    assert all(not isinstance(leaf, float) or math.isfinite(leaf) for leaf in leaves(read))


def test_an_interrupted_report_has_empty_lists() -> None:
    read = document(interrupted())
    assert read["interrupted"] is True
    assert [read[name] for name in ("drafts", "plain", "picks", "proofs", "certificates")] == [[]] * 5


def test_names_are_whole() -> None:
    assert document(CASES["long names"])["drafts"][0]["draft"] == LONG
    assert document(CASES["wild names"])["drafts"][0]["draft"] == WILD
