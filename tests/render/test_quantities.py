"""How quantities are written: three digits, in the unit that they have once they are rounded."""

import pytest

from gptfast_cli.render.numbers import count, duration, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (999, "999 bytes"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (999_499_999, "999 MB"),
        (999_999_999, "1.00 GB"),
        (13_476_000_000, "13.5 GB"),
        (9_870e9, "9,870 GB"),
    ],
)
def test_a_size_that_rounds_to_the_next_unit_is_reported_in_it(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (999_499, "999 k"), (999_999, "1.00 M"), (999_999_999, "1.00 B"), (6_738_415_616, "6.74 B")],
)
def test_a_count_that_rounds_to_the_next_unit_is_reported_in_it(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "1.23 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.00 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (119.6, "2 min 00 s"),
    ],
)
def test_a_time_that_rounds_to_the_next_unit_is_reported_in_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
