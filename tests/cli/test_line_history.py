"""The file that keeps what was typed."""

from pathlib import Path

from gptfast_cli.render.chat import LineHistory


def test_entries_come_back_in_their_order_whatever_is_in_them(tmp_path: Path) -> None:
    typed = ["one", "two\nlines", "wärmt 日本 \u2028", '\\ " \x1b', "half \udce4 character"]
    for entry in typed:
        LineHistory(tmp_path / "new" / "history").add(entry)
    assert LineHistory(tmp_path / "new" / "history").entries() == typed


def test_it_is_readable_by_its_owner_alone_also_once_shortened(tmp_path: Path) -> None:
    file = tmp_path / "history"
    history = LineHistory(file, most_entries=2)
    for entry in ("one", "two", "three"):
        history.add(entry)
    assert file.stat().st_mode & 0o777 == 0o600
    history.shorten()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == '"two"\n"three"\n'
    assert list(tmp_path.iterdir()) == [file]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(b'"one"\n{"no": "text"}\n"torn\n\xff\xfe\n\n"two"\n')
    assert LineHistory(file).entries() == ["one", "two"]


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = LineHistory(tmp_path / "file" / "history")
    history.add("one")
    history.shorten()
    assert history.entries() == []
