from dataclasses import replace

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.charts.bars import break_even_edges, heat_map
from sample_report import sample_report

CELLS = sample_report().drafts[0].grid


def test_the_break_even_line_runs_between_gains_and_losses() -> None:
    #            k = 1  2    3
    rows = ((1.2, 1.5, 1.1), (1.0, 0.9, 0.8), (0.7, 1.1, 0.5))
    speedups = {(column, row): rows[row][column] for row in range(3) for column in range(3)}
    assert break_even_edges(speedups) == [
        (0, 2, 1, 2),  # 1.0 is even and counts as a gain; below it is 0.7
        (1, 1, 1, 2),  # 1.0 | 0.9
        (1, 1, 2, 1),  # 1.5 over 0.9
        (1, 2, 1, 3),  # 0.7 | 1.1
        (1, 2, 2, 2),  # 0.9 over 1.1
        (2, 1, 3, 1),  # 1.1 over 0.8
        (2, 2, 2, 3),  # 1.1 | 0.5
    ]


def test_no_line_is_drawn_where_all_gain_or_where_a_neighbour_is_missing() -> None:
    assert break_even_edges({(0, 0): 1.2, (1, 0): 1.1}) == []
    assert break_even_edges({(0, 0): 1.2, (2, 0): 0.5, (0, 2): 0.5}) == []


def test_the_line_of_a_chart_lies_on_the_sides_of_its_cells() -> None:
    cells = [replace(each, predicted=_exactly(1.1 if each.k < 3 else 0.9)) for each in CELLS if each.batch_size == 1]
    source = str(heat_map("a chart", cells))
    third = next(line for line in source.split("<g>") if "k 3, batch 1" in line)
    left, top = (float(third.split(f'{axis}="')[1].split('"')[0]) for axis in ("x", "y"))
    assert f'd="M{left - 0.5:g},{top - 0.5:g}L{left - 0.5:g},{top + 35.5:g}" class="break-even"' in source


def test_a_cell_has_its_number_and_a_proved_one_its_measured_number_too() -> None:
    cell = replace(CELLS[0], predicted=_exactly(1.234), measured=None)
    assert ">1.23</text>" in str(heat_map("a chart", [cell]))
    assert 'class="ring' not in str(heat_map("a chart", [cell]))
    proved = str(heat_map("a chart", [replace(cell, measured=_exactly(1.189))]))
    assert ">1.23</text>" in proved and ">1.19</text>" in proved and 'class="ring' in proved


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)
