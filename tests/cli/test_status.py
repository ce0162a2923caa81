"""The status of a file of prompts under way: what is done, and the time that the rest will take."""

import pytest

from gptfast_cli.core.events import Measured, Progress
from gptfast_cli.render.progress import Status


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its one number is changed."""
    now = [0.0]
    monkeypatch.setattr("gptfast_cli.render.progress.time.monotonic", lambda: now[0])
    return now


def rows(done: int) -> Progress:
    return Progress("generate", done, 100, "rows")


def test_before_the_first_row_is_done_the_time_is_what_has_passed(clock: list[float]) -> None:
    status = Status()
    clock[0] = 5
    status.add(rows(40))
    clock[0] = 7
    assert status.parts() == ["40 of 100 rows", "2.00 s"]


def test_the_time_left_counts_rows_of_this_run_and_halves_those_under_way(clock: list[float]) -> None:
    status = Status()
    status.add(rows(40))
    status.add(Measured("first token", 1, 0.5))
    status.add(Measured("decode", 8, 0.1, n_sequences=8))
    status.add(rows(56))
    clock[0] = 10
    # 16 and half of 8 took 10 s; 44 less half of 8 are left
    assert status.parts() == ["56 of 100 rows", "80.0 tok/s", "9 tokens", "20.0 s left"]


def test_after_the_last_row_the_time_is_what_has_passed(clock: list[float]) -> None:
    status = Status()
    status.add(rows(0))
    status.add(Measured("decode", 1, 0.1))
    status.add(rows(100))
    clock[0] = 10
    assert status.parts()[-1] == "10.0 s"


def test_rounds_say_how_many_drafted_tokens_they_keep(clock: list[float]) -> None:
    status = Status()
    status.add(Measured("decode", 4, 0.1, n_sequences=4))  # a plain step
    status.add(Measured("decode", 9, 0.1, n_sequences=4, n_rounds=4, n_accepted=5))
    status.add(Measured("decode", 12, 0.1, n_sequences=4, n_rounds=4, n_accepted=8))
    assert status.parts() == ["83.3 tok/s", "25 tokens", "1.6 accepted a round", "0.00 ms"]


def test_a_benchmark_says_what_runs_and_adds_no_speeds_up(clock: list[float]) -> None:
    status = Status()
    status.add(Progress("pp512, batch 1", 0, 12, "runs"))
    status.add(Measured("decode", 8, 0.1))
    clock[0] = 10
    status.add(Progress("tg128, batch 8", 4, 12, "runs"))
    assert status.parts() == ["4 of 12 runs", "20.0 s left", "tg128, batch 8"]
