"""The comparison's arithmetic: which pairs count, what their medians are, when it ends, and what the table says."""

import itertools
import json
from collections.abc import Callable

import pytest
from paired_runs import Pair, Pairs, Sides, collect
from peer_table import Circumstances, Line, document, markdown
from shared_machine import Machine

STEADY = (50.0, 50.0, 50.0)
AROUND = Circumstances(
    command="compare it",
    cpu="A CPU",
    n_threads=2,
    instruction_sets=("aes", "avx2"),
    os="Linux",
    python="3.11",
    torch="2.13",
    gptfast="0.1",
    commit="c0ffee",
    peer="peer 1.2",
    peer_settings={"build_commit": "abc"},
    compiler="g++ 12",
    date="2026-01-01",
)


def pair(peer: float, ours: float, probes: tuple[float, float, float] = STEADY, *, others: float = 0.0) -> Pair:
    return Pair(peer, ours, probes, others, peer_first=True)


def machine(probe: Callable[[], float], others_cpu_s: Callable[[], float] = lambda: 0.0) -> Machine:
    """A machine of two processors on which a second is over whenever somebody looks at the clock."""
    return Machine(probe, others_cpu_s, 2, map(float, itertools.count()).__next__, lambda _: None)


def line(*pairs: Pair) -> Line:
    return Line("b", "Q8_0", "int8", "tg200", 143_000_000, 135_000_000, Pairs(pairs))


@pytest.mark.parametrize("slow", range(3))
def test_a_pair_counts_while_its_slowest_probe_is_within_8_percent_of_the_fastest(slow: int) -> None:
    def probes(slowest: float) -> tuple[float, float, float]:
        return tuple(slowest if index == slow else 100.0 for index in range(3))  # type: ignore[return-value]

    assert pair(1, 1, probes(92.1)).is_accepted
    assert not pair(1, 1, probes(91.9)).is_accepted


def test_a_pair_counts_while_others_leave_95_percent_of_the_processors() -> None:
    assert pair(1, 1, others=0.049).is_accepted and not pair(1, 1, others=0.051).is_accepted


def test_what_others_take_is_a_share_of_all_processors_since_then() -> None:
    crowd = machine(lambda: 50, iter([3.0, 3.5]).__next__)
    assert crowd.others_since(crowd.moment()) == 0.25  # half a second of two processors for one


def test_no_pair_begins_while_others_are_busy() -> None:
    said: list[str] = []
    busy_twice = iter([0.0, 1, 1, 2, 2, 2, 2, 2])
    others = machine(lambda: said.append("probe") or 50, lambda: said.append("look") or next(busy_twice))
    collect({"x": Sides(lambda: 1, lambda: 2)}, others, n_wanted=1, is_over=lambda: False)
    assert said == ["look"] * 6 + ["probe", "look"] + ["probe"] * 3 + ["look"]  # two at each of three looks


def test_medians_leave_out_pairs_that_were_set_aside() -> None:
    drifted = pair(1, 1000, (50, 60, 50))
    pairs = Pairs((pair(10, 30), drifted, pair(20, 30), pair(40, 44, (52, 53, 54))))
    summary = pairs.summary
    assert summary is not None and (len(pairs.accepted), pairs.n_rejected) == (3, 1)
    assert (summary.peer_tok_s, summary.ours_tok_s, summary.probe_gbps) == (20, 30, 50)
    assert (summary.ratio, summary.least_ratio, summary.largest_ratio) == (1.5, 1.1, 3)


def test_the_ratio_is_the_median_of_ratios() -> None:
    summary = Pairs((pair(10, 40), pair(20, 20), pair(100, 60))).summary
    assert summary is not None and summary.ratio == 1 and summary.ours_tok_s / summary.peer_tok_s == 2


def test_rows_are_interleaved_with_probes_around_every_side_and_sides_take_turns_to_be_first() -> None:
    said: list[str] = []

    def says(what: str, value: float) -> Callable[[], float]:
        return lambda: said.append(what) or value  # type: ignore[func-returns-value]

    rows = {name: Sides(says(f"peer {name}", 10), says(f"ours {name}", 20)) for name in ("x", "y")}
    found = collect(rows, machine(says("probe", 50)), n_wanted=2, is_over=lambda: False)
    one = [["peer x", "ours x"], ["peer y", "ours y"], ["ours x", "peer x"], ["ours y", "peer y"]]
    assert said == [step for first, second in one for step in ("probe", "probe", first, "probe", second, "probe")]
    assert all([each.ratio for each in row.pairs] == [2, 2] for row in found.values())
    assert [each.peer_first for each in found["x"].pairs] == [True, False]


def test_it_goes_on_until_each_row_has_enough_pairs_that_count() -> None:
    sides = Sides(lambda: 1, lambda: 2)
    x_drifts_once = iter([9, 50, 40, 50] + [9, 50, 50, 50] * 2)  # the first of four only wakes it
    found = collect({"x": sides, "y": sides}, machine(x_drifts_once.__next__), n_wanted=1, is_over=lambda: False)
    assert {name: (len(row.accepted), row.n_rejected) for name, row in found.items()} == {"x": (1, 1), "y": (1, 0)}


def test_it_ends_when_time_is_up_with_what_there_is() -> None:
    over = iter([False, True])
    sides = Sides(lambda: 1, lambda: 2)
    found = collect({"x": sides, "y": sides}, machine(lambda: 50), n_wanted=5, is_over=over.__next__)
    assert (len(found["x"].pairs), len(found["y"].pairs)) == (1, 0)


def test_the_table_has_medians_spread_and_circumstances() -> None:
    table = markdown([line(pair(10, 30), pair(1, 1, (1, 2, 3)), pair(1000, 1500))], AROUND).splitlines()
    assert table[2] == "| b | Q8_0 / int8 | 143 / 135 | tg200 | 505 | 765 | 2.25 [1.50..3.00] | 2 (1) | 50.0 |"
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    below = "\n".join(table[3:])
    for circumstance in (
        "`compare it`",
        "2 threads of A CPU (avx2)",
        "torch 2.13",
        "commit c0ffee",
        "peer 1.2",
        "g++ 12",
    ):
        assert circumstance in below


def test_a_row_without_a_pair_that_counts_has_no_numbers() -> None:
    table = markdown([line(pair(1, 1, (1, 2, 3)))], AROUND).splitlines()
    assert table[2] == "| b | Q8_0 / int8 | 143 / 135 | tg200 | - | - | - | 0 (1) | - |"


def test_the_record_keeps_every_pair_and_says_which_count() -> None:
    record = json.loads(json.dumps(document([line(pair(10, 30), pair(1, 1, (1, 2, 3))), line()], AROUND)))
    row, empty = record["rows"]
    assert [each["is_accepted"] for each in row["pairs"]] == [True, False]
    assert row["pairs"][1]["probes_gbps"] == [1, 2, 3] and row["pairs"][0]["ratio"] == 3
    assert row["summary"]["ratio"] == 3 and empty["summary"] is None
    assert record["circumstances"]["commit"] == "c0ffee"
