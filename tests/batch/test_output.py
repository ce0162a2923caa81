"""The output of a batch: whole records whatever befalls its writer, in the order asked for, and of no other run."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gptfast_cli.core.batch.output import Output, RecordFile, open_output
from gptfast_cli.core.errors import DiskFullError, NotFoundError, UsageError
from gptfast_cli.core.events import Record

IDENTITIES = {line: f"identity {line}" for line in (1, 2, 4, 5, 6)}  # line 3 is blank


def record(line: int, **reported: object) -> Record:
    return Record({"id": f"row {line}", "line": line, "text": "x" * 50, **reported, "request": f"identity {line}"})


def lines_in(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_text().splitlines()]


def written(path: Path, *lines: int, in_order: bool = True) -> list[int]:
    """What a run finds there; it then puts the records of these lines."""
    with open_output(path, IDENTITIES, in_order=in_order) as output:
        for line in lines:
            output.put(record(line))
        return list(output.found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def waiting(path: Path) -> Path:
    return path.with_name("out.jsonl.waiting")


def put_all(output: Output, *lines: int) -> Iterator[list[int]]:
    for line in lines:
        yield [int(str(left.fields["line"])) for left in output.put(record(line))]


@pytest.mark.parametrize("to_file", [True, False])
def test_in_order_a_record_waits_for_those_before_it(path: Path, to_file: bool) -> None:
    with open_output(path if to_file else None, IDENTITIES, in_order=True) as output:
        assert list(put_all(output, 4, 1, 2, 6, 5)) == [[], [1], [2, 4], [], [5, 6]]
    if to_file:
        assert lines_in(path) == [1, 2, 4, 5, 6]


def test_unordered_every_record_leaves_at_once(path: Path) -> None:
    with open_output(path, IDENTITIES, in_order=False) as output:
        for line in (4, 1, 2):
            output.put(record(line))
            assert lines_in(path)[-1] == line


def test_what_waits_without_a_file_can_still_be_reported(path: Path) -> None:
    with open_output(None, IDENTITIES, in_order=True) as output:
        list(put_all(output, 6, 4))
        assert [left.fields["line"] for left in output.unsaved()] == [4, 6]
    with open_output(path, IDENTITIES, in_order=True) as output:
        list(put_all(output, 6, 4))
        assert output.unsaved() == []


def test_a_record_that_waits_is_safe_in_a_file_of_its_own(path: Path, waiting: Path) -> None:
    assert written(path, 4, 6, 1) == []
    assert lines_in(path) == [1] and lines_in(waiting) == [4, 6]
    assert written(path, 2) == [1, 4, 6]
    assert lines_in(path) == [1, 2, 4] and lines_in(waiting) == [4, 6]
    assert written(path, 5) == [1, 2, 4, 6]
    assert lines_in(path) == [1, 2, 4, 5, 6] and not waiting.exists()


def test_unordered_takes_up_at_once_what_waited_in_order(path: Path, waiting: Path) -> None:
    written(path, 4, 1)
    assert written(path, in_order=False) == [1, 4]
    assert lines_in(path) == [1, 4] and not waiting.exists()


def test_an_output_that_was_deleted_takes_its_waiting_records_along(path: Path, waiting: Path) -> None:
    written(path, 4)
    path.unlink()
    assert written(path, 1) == []
    assert lines_in(path) == [1] and not waiting.exists()


@pytest.mark.parametrize("kept", range(1, 120, 7))
def test_a_torn_last_record_is_cut_off(path: Path, kept: int) -> None:
    written(path, 1, 2, in_order=False)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + kept])
    assert written(path, 2) == [1]
    assert path.read_bytes() == whole


def test_a_last_record_without_its_newline_is_written_again(path: Path) -> None:
    written(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert written(path, 2) == [1]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"my notes\n", b"my notes", b'{"id": 1, "prompt": "a"}', b'{"id": 1, "prompt": "a"}\n', b"[]\n", b"\xff", b"\n"],
)
def test_a_file_of_something_else_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"out\.jsonl:1: is not a record"):
        written(path)
    assert path.read_bytes() == content


def test_a_file_of_something_else_beside_the_output_is_left_alone(path: Path, waiting: Path) -> None:
    waiting.write_bytes(b"my notes\n")
    with pytest.raises(UsageError, match=r"out\.jsonl\.waiting:1: is not a record"):
        written(path)
    assert waiting.read_bytes() == b"my notes\n"


@pytest.mark.parametrize(
    "identities", [IDENTITIES | {2: "another"}, {1: "identity 1"}], ids=["another row", "no such row"]
)
def test_records_of_other_rows_or_options_are_refused_by_line(path: Path, identities: Mapping[int, str]) -> None:
    written(path, 1, 2, 4)
    before = path.read_bytes()
    with (
        pytest.raises(UsageError, match="its record of line 2 comes from another prompt"),
        open_output(path, identities, in_order=True),
    ):
        pass
    assert path.read_bytes() == before


def test_waiting_records_of_other_rows_are_made_anew(path: Path, waiting: Path) -> None:
    written(path, 1, 4, 6)
    with open_output(path, IDENTITIES | {4: "another"}, in_order=True) as output:
        assert list(output.found) == [1, 6]


def test_records_out_of_order_are_not_continued_in_order(path: Path) -> None:
    written(path, 4, 1, in_order=False)
    with pytest.raises(UsageError, match="not in the order of the rows"):
        written(path)


def test_a_row_that_is_there_twice_is_refused(path: Path) -> None:
    written(path, 1)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UsageError, match="line 1"):
        written(path, in_order=False)


def test_only_one_run_writes_a_file(path: Path) -> None:
    with open_output(path, IDENTITIES, in_order=True), pytest.raises(UsageError, match="another run is writing it"):
        written(path)
    assert written(path) == []


def test_a_place_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no folder"):
        written(tmp_path / "no" / "out.jsonl")
    with pytest.raises(UsageError, match="is a folder"):
        written(tmp_path)
    with pytest.raises(UsageError, match="is not a regular file"):
        written(Path("/dev/null"))


def test_a_full_disk_leaves_whole_records_and_a_way_to_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 300
    write = os.write

    def write_while_there_is_room(handle: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        n_written = write(handle, data[:room])
        room -= n_written
        return n_written

    monkeypatch.setattr("gptfast_cli.core.batch.output.os.write", write_while_there_is_room)
    with pytest.raises(DiskFullError, match="the records written before are kept") as raised:
        written(path, 1, 2, 4, 5)
    assert "resumes from there" in raised.value.hint
    assert lines_in(path) == [1, 2]
    monkeypatch.undo()
    assert written(path, 4, 5, 6) == [1, 2]
    assert lines_in(path) == [1, 2, 4, 5, 6]


def test_an_interrupted_write_leaves_no_part_of_a_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int, data: bytes) -> int:
        raise KeyboardInterrupt

    file = RecordFile(path)
    file.append(record(1).fields)
    monkeypatch.setattr("gptfast_cli.core.batch.output.os.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append(record(2).fields)
    monkeypatch.undo()
    file.append(record(4).fields)
    file.close()
    assert lines_in(path) == [1, 4]


def test_a_record_is_on_its_way_to_the_disk_before_the_next_is_made(path: Path) -> None:
    file = RecordFile(path)
    file.append(record(1).fields)
    assert lines_in(path) == [1], "kill -9 now must not lose it"
    file.close()
