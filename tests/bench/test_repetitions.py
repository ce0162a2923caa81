"""With a clock and rows of known costs, what is measured comes out exactly; what failed is never a number."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.bench.repetitions import Failed, Repetition, Spread, Timed, TimedRow, Work, measured, spread
from gptfast_cli.core.errors import OutOfMemoryError, UsageError
from gptfast_cli.core.events import Measured, Note, Progress
from model_files import drained


@dataclass
class World:
    """A machine in which only what is reported to take time takes time."""

    seconds: float = 50.0
    bandwidths: list[float] = field(default_factory=list)  # of the probes to come; then 100 bytes a second
    log: list[str] = field(default_factory=list)
    peak: int = 0

    def now(self) -> float:
        return self.seconds

    def probe(self) -> Bandwidth:
        self.log.append("probe")
        self.seconds += 1000
        return Bandwidth(n_bytes=1, seconds=1 / (self.bandwidths.pop(0) if self.bandwidths else 100))

    def reset(self) -> None:
        self.peak = 0

    def peak_bytes(self) -> int:
        return self.peak

    def row(self, name: str, costs: list[float | BaseException]) -> TimedRow:
        """A row whose repetitions cost so much, the warm-up first, or fail; each reads 10 bytes."""

        def prepare() -> Work:
            self.log.append(f"prepare {name}")
            self.seconds += 500
            return work

        def work() -> int:
            self.log.append(name)
            match costs.pop(0):
                case BaseException() as error:
                    raise error
                case cost:
                    self.seconds += cost
            return 10

        return TimedRow(name, "decode", 4, prepare)


def test_times_are_those_of_the_work_alone() -> None:
    world = World()
    rows = [world.row("a", [64, 1, 2, 3]), world.row("b", [64, 0.5, 0.25, 0.125])]
    _, (a, b) = drained(measured(rows, 3, now=world.now, probe=world.probe, memory=world))
    assert a == Timed((Repetition(1, 10, 100), Repetition(2, 10, 100), Repetition(3, 10, 100)))
    assert b == Timed((Repetition(0.5, 10, 100), Repetition(0.25, 10, 100), Repetition(0.125, 10, 100)))


def test_rows_take_turns_each_between_two_probes() -> None:
    world = World()
    rows = [world.row(name, [1, 1, 1]) for name in "ab"]
    drained(measured(rows, 2, now=world.now, probe=world.probe, memory=world))
    round_of_both = ["prepare a", "probe", "a", "probe", "prepare b", "probe", "b", "probe"]
    assert world.log == round_of_both * 3


def test_a_repetition_has_the_bandwidth_measured_around_it() -> None:
    world = World(bandwidths=[1, 1, 32, 64, 8, 16])
    _, (a,) = drained(measured([world.row("a", [1, 1, 1])], 2, now=world.now, probe=world.probe, memory=world))
    assert [repetition.bandwidth for repetition in a.repetitions] == [48, 12]


def test_a_caller_that_takes_its_time_over_an_event_is_not_measured() -> None:
    world = World()
    job = measured(
        [world.row("a", [1, 1, 1]), world.row("b", [1, 2, 2])], 2, now=world.now, probe=world.probe, memory=world
    )
    events = []
    for event in job:
        events.append(event)
        world.seconds += 3600
    assert [event.seconds for event in events if isinstance(event, Measured)] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "OOM"),
        (OutOfMemoryError("Not enough memory."), "OOM"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "OOM"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "OOM"),
        (UsageError("No room for 9 tokens.", "Take fewer."), "No room for 9 tokens."),
        (RuntimeError("the device is lost\nand much more"), "the device is lost"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_row_that_fails_has_its_error_and_no_number_and_the_others_go_on(
    error: Exception, text: str, turn: int
) -> None:
    world = World()
    costs: list[float | BaseException] = [1, 1, 1]
    costs[turn] = error
    rows = [world.row("a", [1, 1, 2]), world.row("b", costs), world.row("c", [1, 3, 4])]
    events, (a, b, c) = drained(measured(rows, 2, now=world.now, probe=world.probe, memory=world))
    assert b == Failed(text)
    assert [times.seconds for times in (*a.repetitions, *c.repetitions)] == [1, 2, 3, 4]
    assert Note(f"b: {text}") in events
    assert world.log.count("b") == turn + 1


def test_what_cannot_be_made_ready_has_failed_too() -> None:
    def prepare() -> Work:
        raise MemoryError

    world = World()
    _, outcomes = drained(
        measured([TimedRow("a", "decode", 1, prepare)], 2, now=world.now, probe=world.probe, memory=world)
    )
    assert outcomes == (Failed("OOM"),)


def test_a_fault_of_our_own_is_no_result() -> None:
    world = World()
    with pytest.raises(AssertionError):
        drained(measured([world.row("a", [AssertionError()])], 1, now=world.now, probe=world.probe, memory=world))


def test_progress_reaches_its_end_even_where_rows_fail() -> None:
    world = World()
    rows = [world.row("a", [MemoryError()]), world.row("b", [1, 1, 1])]
    events, _ = drained(measured(rows, 2, now=world.now, probe=world.probe, memory=world))
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress == [
        *(Progress(name, done, 6, "runs") for done, name in enumerate("ababab")),
        Progress("done", 6, 6, "runs"),
    ]


def test_the_peak_of_memory_is_that_of_making_ready_and_working_alone() -> None:
    world = World()

    def row(name: str, peaks: list[int]) -> TimedRow:
        def prepare() -> Work:
            world.peak = max(world.peak, peaks.pop(0))
            return lambda: None

        return TimedRow(name, "decode", 1, prepare)

    rows = [row("a", [1, 700, 800]), row("b", [1, 30, 20])]
    _, (a, b) = drained(measured(rows, 2, now=world.now, probe=world.probe, memory=world))
    assert [repetition.peak_memory_bytes for repetition in (*a.repetitions, *b.repetitions)] == [700, 800, 30, 20]


def test_an_interrupt_in_the_middle_of_work_keeps_what_was_measured() -> None:
    world = World()
    rows = [world.row("a", [1, 2, 3]), world.row("b", [1, KeyboardInterrupt()]), world.row("c", [1])]
    events, (a, b, c) = drained(measured(rows, 2, now=world.now, probe=world.probe, memory=world))
    assert [repetition.seconds for repetition in a.repetitions] == [2]
    assert b == c == Failed("interrupted")
    assert events[-1] == Note("Interrupted: these are the repetitions that were measured.")


def test_an_interrupt_between_two_rows_keeps_what_was_measured() -> None:
    world = World()
    job = measured([world.row("a", [1, 2, 3])], 2, now=world.now, probe=world.probe, memory=world)
    while not isinstance(next(job), Measured):
        pass
    job.throw(KeyboardInterrupt)
    with pytest.raises(StopIteration) as end:
        next(job)
    assert [repetition.seconds for repetition in end.value.value[0].repetitions] == [2]


def test_only_the_work_of_one_row_is_in_memory_at_a_time() -> None:
    alive: list[str] = []

    class Held:
        def __init__(self, name: str) -> None:
            alive.append(name)
            self.name = name

        def __del__(self) -> None:
            alive.remove(self.name)

    def row(name: str) -> TimedRow:
        def prepare() -> Callable[[], None]:
            assert not alive
            held = Held(name)

            def work() -> None:
                assert alive == [held.name]
                if name == "b":
                    raise MemoryError

            return work

        return TimedRow(name, "prefill", 1, prepare)

    world = World()
    _, (_, b, c) = drained(measured([row(name) for name in "abc"], 2, now=world.now, probe=world.probe, memory=world))
    assert b == Failed("OOM")
    assert len(c.repetitions) == 2


def test_the_spread_of_known_values() -> None:
    assert spread([2, 4, 4, 4, 5, 5, 7, 9]) == Spread(mean=5, sd=pytest.approx((32 / 7) ** 0.5), median=4.5)


def test_one_value_has_no_deviation() -> None:
    assert spread([3]) == Spread(mean=3, sd=None, median=3)
