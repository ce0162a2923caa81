"""The report as Markdown: whole tables, names that make no markup, and one line about the measurement."""

import re
from io import StringIO

import pytest
from report_variants import CASES, interrupted

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.report.text import write_markdown
from sample_report import sample_report

COMMAND = "gptfast speculate --draft tiny-draft"


def text(of: DraftReport) -> str:
    stream = StringIO()
    write_markdown(of, COMMAND, stream)
    return stream.getvalue()


def tables(written: str) -> list[list[str]]:
    return [part.split("\n") for part in written.split("\n\n") if part.startswith("|")]


@pytest.mark.parametrize("case", CASES)
def test_all_rows_of_a_table_have_as_many_cells_as_its_heading(case: str) -> None:
    for table in tables(text(CASES[case])):
        counts = [len(re.findall(r"(?<!\\)\|", row)) for row in table]
        assert len(set(counts)) == 1
        assert re.fullmatch(r"\|( (---|--:) \|)+", table[1])
        assert len(table) > 2


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_first_and_the_command_with_the_machine_last(case: str) -> None:
    paragraphs = text(CASES[case]).rstrip("\n").split("\n\n")
    assert paragraphs[0] == f"**{CASES[case].verdict}**"
    about = f"`{COMMAND}`: 2 threads of A CPU, bfloat16 on cpu; torch 2.13.0, Python 3.11.7, gptfast 0.1.0, commit 000"
    assert paragraphs[-1].startswith(about)
    assert "seed 0" in paragraphs[-1]
    assert "[low, high]: 95 of 100 bootstrap samples" in paragraphs[-1]
    assert text(CASES[case]).count(COMMAND) == 1


def test_every_part_of_the_report_has_its_table() -> None:
    rows = {row for table in tables(text(sample_report())) for row in table}
    assert "| 0 | 1 | `tiny-draft` | 7 | 2.55 [2.48, 2.63] |" in rows
    assert "| 4 | 3.71 | 2.41 | 2.29 | 2.09 | **1.77** | 52% | 85% |" in rows
    assert "| measured |  | 2.39 |  |  |  |  |  |" in rows
    assert "| 1 | 7 | 2.55 [2.48, 2.63] | 19.4 ms | 37% | 60% | 2% | 1% | 0.494 | 4.21 | 250 | 3.99 ms | 23.2 |" in rows
    assert "| `self:int8` | 0 | 1 | 2 | 1.10 | 1.13 [1.10, 1.15] | -2.7% | 60 |" in rows
    assert "| `tiny-draft` | 0 | 0.870 [0.844, 0.896] | 0.750 [0.728, 0.772] |" in rows
    assert "| 0.8 | 1 | 10.2 ms | 98.0 | 31.0 | 50% |" in rows
    assert "| `tiny-draft` | 40 of 40 | 2,000 | 31.2 | 28 | 0.31 | yes |" in rows


def test_a_name_makes_no_markup_and_acts_on_no_terminal() -> None:
    written = text(CASES["wild names"])
    assert "\x1b" not in written
    assert "\t" not in written
    assert "`` a\\|b\u241b[31m `c` <d>_e_*f* ``" in written


def test_an_interrupted_report_has_sentences_in_place_of_tables() -> None:
    written = text(interrupted())
    assert tables(written) == []
    assert "Interrupted: this is what was measured until then." in written
    assert "No draft was judged." in written


def test_prompts_that_failed_are_counted_and_named_with_their_reasons() -> None:
    written = text(CASES["failed prompts"])
    assert "### Failed prompts\n\nLeft out: 3 of 60 prompts.\n\n" in written
    assert "\n\n`rows.jsonl:3`, `rows.jsonl:7`: Token id 9999 has no embedding.\n\n" in written
    assert "`` a|b\u241b[31m `c` <d>_e_*f* ``: The model's logits are \\<NaN> or \\_infinite\\_.\n\n" in written
    assert "Failed prompts" not in text(sample_report())
