"""Tables folded to the width of a page."""

import pytest

from gptfast_cli.render.terminal import COLUMNS, Table, aligned, folded


@pytest.mark.parametrize(("last", "n_pieces"), [(30, 1), (31, 2)])
def test_a_table_is_folded_where_it_no_longer_fits_and_not_before(last: int, n_pieces: int) -> None:
    table = Table(("k", "a", "b"), (("1" * 16, "2" * 30, "3" * last),), "<>>")  # 16 + 2 + 30 + 2 + 30 = 80
    pieces = [list(aligned(piece)) for piece in folded(table)]
    assert len(pieces) == n_pieces
    assert max(len(line) for piece in pieces for line in piece) <= COLUMNS
    assert all(piece[0].startswith("k ") and piece[1].startswith("1" * 16) for piece in pieces)
