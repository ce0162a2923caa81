"""Text that fills a line moves the cursor on, so that no terminal can misplace it."""

import pytest

from gptfast_cli.render.samples import Cursor

FINISHED = " \b"


@pytest.mark.parametrize(
    ("text", "is_full"),
    [
        ("123456789", False),
        ("1234567890", True),
        ("12345678901", False),
        ("12345\n67890", False),
        ("12345\n6789012345", True),
        ("\t9", False),
        ("\t90", True),
        ("日本語日本", True),
        ("1日本語日本", False),  # the last one does not fit and begins the next line
        ("1日本語日", False),
        ("e\N{COMBINING ACUTE ACCENT}123456789", True),
    ],
)
def test_a_full_line_is_left_at_once(text: str, is_full: bool) -> None:
    assert Cursor(10).placed(text) == text + (FINISHED if is_full else "")
    piecewise = Cursor(10)
    written = "".join(map(piecewise.placed, text))
    assert written.endswith(FINISHED) == is_full
    assert written.replace(FINISHED, "") == text


def test_a_newline_after_a_full_line_is_not_a_second_one() -> None:
    cursor = Cursor(4)
    assert cursor.placed("abcd") == f"abcd{FINISHED}"
    assert cursor.placed("\nef") == "ef"
    assert cursor.placed("gh") == f"gh{FINISHED}"
    assert cursor.placed("\n") == ""
    assert cursor.placed("\n") == "\n"
