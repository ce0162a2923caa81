"""The report on a terminal: verdict first, machine last, 80 columns, and every number where a person looks for it."""

import re
from dataclasses import replace
from io import BytesIO, StringIO

import pytest
from report_variants import CASES, LONG, Terminal, Written, interrupted, of_many, of_one, with_gaps, without_costs

from gptfast_cli.core.drafts.report import DraftReport, Interval, Noise, Recommendation
from gptfast_cli.render.report.text import write_text
from sample_report import sample_report


def text(of: DraftReport) -> str:
    stream = StringIO()
    write_text(of, stream)
    return stream.getvalue()


def section(written: str, title: str) -> list[str]:
    return next(part for part in written.split("\n\n") if part.startswith(title)).split("\n")


def row_of_k(written: str, title: str, k: int) -> str:
    return next(line for line in section(written, title) if re.match(rf" *{k}  ", line))


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_first_and_the_machine_last(case: str) -> None:
    written = text(CASES[case])
    assert written.startswith(CASES[case].verdict + "\n")
    assert written.split("\n\n")[-1].startswith("2 threads of A CPU, bfloat16 on cpu; torch 2.13.0")
    last = " ".join(written.split("\n\n")[-1].split("\n"))
    n_prompts = CASES[case].n_prompts
    assert f"{n_prompts} prompts, 128 new tokens each at most; seed 0; memory reads 61.2 GB/s" in last


@pytest.mark.parametrize("case", CASES)
def test_no_line_is_longer_than_80_columns(case: str) -> None:
    lines = text(CASES[case]).split("\n")
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_a_pipe_gets_no_escapes_and_no_control_characters(case: str) -> None:
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text(CASES[case])) is None


def test_a_terminal_gets_the_same_text_in_bold_and_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    write_text(sample_report(), terminal)
    written = terminal.getvalue()
    assert written.startswith("\x1b[1muse tiny-draft")
    assert "\x1b[1m1.77*\x1b[0m" in written
    assert "\x1b[2m(0.93)\x1b[0m" in written
    assert re.sub(r"\x1b\[\d*m", "", written) == text(sample_report())


def test_one_draft_at_one_temperature_fills_two_screens_at_most() -> None:
    whole = sample_report()
    one = replace(
        whole,
        drafts=whole.drafts[:1],
        recommendations=whole.recommendations[:4],
        validation_runs=whole.validation_runs[:1],
        plain=whole.plain[:4],
    )
    assert text(one).count("\n") <= 70


def test_each_batch_size_has_its_best_depth_marked_and_losses_in_brackets() -> None:
    written = text(sample_report())
    for draft in sample_report().drafts:
        grid = "\n".join(section(written, f"{draft.draft} at temperature {draft.temperature:g}"))
        assert grid.count("*") == 4
        assert grid.count("(0.") == sum(cell.predicted.value < 1 for cell in draft.grid)
    assert "1.77*" in row_of_k(written, "tiny-draft at temperature 0", 4)


def test_the_best_is_the_highest_prediction_also_where_all_lose() -> None:
    whole = of_one()
    (cell,) = whole.drafts[0].grid
    losing = [replace(cell, k=k, predicted=Interval(value, 0.0, 1.0)) for k, value in ((1, 0.7), (2, 0.9), (3, 0.8))]
    written = text(replace(whole, drafts=(replace(whole.drafts[0], grid=tuple(losing)),)))
    assert re.findall(r"\(0.\d\d\)\*?", "\n".join(section(written, "tiny-draft at"))) == ["(0.70)", "(0.90)*", "(0.80)"]


def test_what_was_measured_stands_right_below_its_prediction() -> None:
    lines = section(text(sample_report()), "tiny-draft at temperature 0")
    n = next(n for n, line in enumerate(lines) if line.startswith("measured"))
    assert lines[n - 1].split()[0] == "4"
    assert lines[n].split() == ["measured", "2.39"]
    assert lines[n].index("2.39") == lines[n - 1].index("2.41")


def test_a_draft_has_alpha_tau_acceptance_and_the_shares_of_a_round() -> None:
    written = text(sample_report())
    assert "alpha 0.850 [0.825, 0.875] (on-policy, 6,400 tokens)" in written
    row = row_of_k(written, "tiny-draft at temperature 0", 2).split()
    assert row == ["2", "2.57", "1.98", "1.92", "1.82", "1.64", "72%", "\u2588" * 5 + "\u258a", "85%"]
    shares = "    1  7  2.55 [2.48, 2.63]  19.4 ms    37%     60%      2%    1%       0.494"
    assert shares in written.split("\n")


def test_picks_proofs_slices_plain_decoding_and_certificates_are_reported() -> None:
    lines = text(sample_report()).split("\n")
    assert "   0      1  tiny-draft  7  2.55 [2.48, 2.63]" in lines
    assert "self:int8          0      1  2       1.10  1.13 [1.10, 1.15]  -2.7%" in lines
    assert "plain decoding     0      1  -       1.00  1.00 [0.99, 1.01]  -0.3%" in lines
    assert "median error 2.7%" in " ".join(lines)
    assert "tiny-draft     0    0.870  0.750" in lines
    assert "tiny-draft     0        0.840          0.860" in lines
    assert " 0.8      1  10.2 ms   98.0  31.0  50%" in lines
    assert "tiny-draft      40 of 40  2,000        31.2  28  0.31    yes" in lines


def test_a_batch_size_for_which_no_draft_is_best_says_none() -> None:
    picks = tuple(replace(pick, draft=None, k=None, speedup=None) for pick in sample_report().recommendations[:1])
    assert section(text(replace(sample_report(), recommendations=picks)), "Recommendations")[-1].split() == [
        "0",
        "1",
        "none",
        "-",
        "-",
    ]


def test_bars_are_ascii_where_the_encoding_has_no_blocks() -> None:
    stream = Written(BytesIO(), encoding="ascii")
    write_text(sample_report(), stream)
    assert "72% ######  " in stream.text()


def test_bars_are_blocks_where_the_encoding_has_them() -> None:
    stream = Written(BytesIO(), encoding="utf-8")
    write_text(sample_report(), stream)
    assert "72% \u2588\u2588\u2588\u2588\u2588\u258a" in stream.text()


def test_an_interrupted_report_says_what_it_has_not() -> None:
    written = text(interrupted())
    assert "Interrupted" in "\n".join(section(written, "Recommendations"))
    for sentence in ("No draft was compared", "No draft was judged", "the predictions were not measured"):
        assert sentence in written
    assert "Interrupted" not in text(sample_report())


def test_agreement_is_shown_before_rounds_are_timed() -> None:
    shown = section(text(without_costs()), "tiny-draft at temperature 0")
    assert shown[-1] == "Its rounds were not timed."
    assert any(line.split()[:3] == ["2", "2.57", "72%"] for line in shown)


def test_numbers_that_are_not_there_are_dashes_and_words() -> None:
    written = text(with_gaps())
    grid = section(written, "tiny-draft at temperature 0")
    assert grid[-1].split()[0] == "8"
    assert row_of_k(written, "tiny-draft at temperature 0", 2).split()[-1] == "-"
    assert "never" in written
    assert "median error" in written
    assert "no median error" in written


def test_long_names_are_shortened_in_tables_and_whole_above_their_grid() -> None:
    written = text(CASES["long names"])
    assert LONG in written.replace("\n", "")
    names = [line.split()[0] for line in section(written, "Validation runs")[2:4]]
    assert names == ["/data/a...bbbb/step-1000", "self:int8"]


def test_names_that_are_shortened_alike_are_told_apart() -> None:
    names = [line.rsplit("  ", 1)[0] for line in text(CASES["long names"]).split("\n") if line.startswith("In tables")]
    assert len(set(names)) == 2


def test_a_grid_that_is_too_wide_is_folded_and_loses_nothing() -> None:
    written = text(of_many())
    for size in (1 << n for n in range(11)):
        assert re.search(rf"^ *k  .*\b{size}\b", written, re.MULTILINE)
    last = [line for line in written.split("\n") if re.match(r" *16  [^\[]*$", line)]
    # of each of 12 drafts: k 16 with 14.4 at each of 11 batch sizes
    assert sum(line.count("14.4") for line in last) == 12 * 11


def test_what_equal_runs_differ_by_stands_beside_the_machine() -> None:
    assert "equal runs differ" not in text(sample_report())
    noisy = replace(sample_report(), noise=Noise(0.8, 1.3))
    assert "equal runs differ by 62%" in " ".join(text(noisy).split())


def test_each_line_of_the_verdict_is_wrapped_by_itself() -> None:
    verdict = "Temperature 0: use " + "d " * 50 + "\nTemperature 1: no draft"
    lines = text(replace(sample_report(), verdict=verdict)).split("\n")
    assert lines[0].startswith("Temperature 0: ") and lines[2] == "Temperature 1: no draft"


def test_a_batch_size_without_a_clear_gain_says_so() -> None:
    unclear = replace(sample_report(), recommendations=(Recommendation(0.0, 1, None, None, None, is_unclear=True),))
    assert section(text(unclear), "Recommendations")[-1].split() == ["0", "1", "no", "clear", "gain", "-", "-"]


def test_prompts_that_failed_are_counted_and_named_with_their_reasons() -> None:
    lines = section(text(CASES["failed prompts"]), "Failed prompts")
    assert lines[1] == "Left out: 3 of 60 prompts."
    assert lines[2] == "rows.jsonl:3, rows.jsonl:7: Token id 9999 has no embedding."
    assert "\u241b[31m" in lines[3] and lines[3].endswith("The model's logits are <NaN> or _infinite_.")
    assert "Failed prompts" not in text(sample_report())
