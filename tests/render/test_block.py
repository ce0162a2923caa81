"""A block keeps its columns, and never runs two cells together."""

import io

from gptfast_cli.render.terminal import write_block


def test_cells_stay_apart_however_long_they_are() -> None:
    shown = io.StringIO()
    write_block([("draft", "s3://team/drafts/one", "k 5"), ("time", "1 s", "", "all")], shown)
    assert shown.getvalue() == "\ndraft    s3://team/drafts/one k 5\ntime     1 s            all\n"
