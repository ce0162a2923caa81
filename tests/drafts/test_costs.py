"""The cost of a step or a round is the time of decode calls over the steps or rounds that they ran."""

from typing import Any

from gptfast_cli.core.drafts.costs import CostMeter
from gptfast_cli.core.engine.engine import StepOutput
from gptfast_cli.core.engine.speculative.verification import Rounds

N_ROWS = 3


class Calls:
    """Decode calls of a full batch, 20 ms and 100 bytes each; `n_rounds` of each call, None where steps are plain."""

    n_rows = N_ROWS

    def __init__(self, rounds: Rounds, n_rounds: list[int | None]) -> None:
        self._rounds = rounds
        self.left = n_rounds

    def step(self) -> StepOutput:
        n = self.left.pop(0)
        for _ in range(N_ROWS * (n or 0)):
            self._rounds.add(5, 2, 3, 2.0)
        seconds = 9.0 if n == 0 else 0.02
        return StepOutput([], [4] * N_ROWS, seconds, 100)


def timed(calls: Calls, rounds: Rounds | None) -> tuple[int, float, int]:
    runner: Any = None  # the calls stand in for it
    return CostMeter(runner, [], [5])._timed(calls, rounds)  # type: ignore[arg-type]


def test_a_call_of_several_plain_steps_counts_as_many() -> None:
    calls = Calls(Rounds(), [None] * 3)
    assert timed(calls, None) == (8, 0.04, 200)
    assert len(calls.left) == 1  # 30 ms are enough


def test_a_call_of_several_rounds_counts_as_many_and_one_without_a_round_not_at_all() -> None:
    rounds = Rounds()
    rounds.add(5, 5, 6, 5.0)  # of an earlier measurement
    calls = Calls(rounds, [1, 0, 2, 7])
    assert timed(calls, rounds) == (3, 0.04, 200)
    assert len(calls.left) == 1


def test_at_least_three_rounds_are_timed_however_long_they_take() -> None:
    rounds = Rounds()
    calls = Calls(rounds, [1, 1, 1, 1])
    assert timed(calls, rounds) == (3, 0.06, 300)
