"""Files and folders appear whole or not at all, and what the dead left behind is cleared away."""

from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.staging import remove_folder, staged_folder
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.files import write_whole

WORK = "0a1b"


def fill(target: Path, text: str, *, replace: bool = False) -> None:
    with staged_folder(target, WORK, replace=replace) as staging:
        (staging / "file").write_text(text)
        assert not target.exists() or replace


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "target", "new")
    assert (tmp_path / "deep" / "target" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["target"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_place_as_it_was(tmp_path: Path, kind: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "target", WORK, replace=True) as staging:
            (staging / "file").write_text("new")
            raise kind

    fill(tmp_path / "target", "old")
    with pytest.raises(kind):
        fail()
    assert (tmp_path / "target" / "file").read_text() == "old"
    assert names(tmp_path) == [f".target.{WORK}.gptfast-resumable", "target"]
    with staged_folder(tmp_path / "target", WORK, replace=True) as staging:
        assert (staging / "file").read_text() == "new"


def test_a_folder_is_replaced_where_that_is_meant(tmp_path: Path) -> None:
    fill(tmp_path / "target", "old")
    fill(tmp_path / "target", "new", replace=True)
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_a_place_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def come_second() -> None:
        with staged_folder(target, WORK, replace=False) as staging:
            (staging / "file").write_text("mine")
            target.mkdir()
            (target / "file").write_text("theirs")

    with pytest.raises(UsageError, match="something is there"):
        come_second()
    assert (target / "file").read_text() == "theirs"


def test_what_a_dead_writer_left_is_swept_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".dead.0.gptfast-partial").mkdir()
    (tmp_path / ".dead.0.gptfast-partial" / "file").write_text("half")
    with staged_folder(tmp_path / "living", WORK, replace=False) as staging:
        fill(tmp_path / "target", "new")
        assert staging.is_dir()
        assert names(tmp_path) == [staging.name, "target"]


def test_a_folder_put_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    fill(tmp_path / "target.v1", "old")
    (tmp_path / "target.v1").rename(tmp_path / ".target.v1.0a.gptfast-replaced")
    fill(tmp_path / "other", "new")
    assert (tmp_path / "target.v1" / "file").read_text() == "old"


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    fill(tmp_path / "target", "old")
    remove_folder(tmp_path / "target")
    assert names(tmp_path) == []


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        write_whole(tmp_path / "home" / "file", text)
    assert (tmp_path / "home" / "file").read_bytes() == b"two\n"
    assert names(tmp_path / "home") == ["file"]
