"""Compiled code is kept where no other user can write, and the reason for another place is said."""

import os
import stat
from pathlib import Path

import pytest

from gptfast_cli.core.files import private_folder, why_untrusted


def test_a_missing_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    wanted = tmp_path / "home" / "kernels"
    assert private_folder(wanted) == (wanted, "")
    assert stat.S_IMODE(wanted.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_replaced_by_a_private_one(tmp_path: Path, mode: int) -> None:
    wanted = tmp_path / "kernels"
    wanted.mkdir()
    wanted.chmod(mode)
    folder, remark = private_folder(wanted, tmp_path / "temporary")
    assert remark.startswith(f"{wanted}: can be written by other users. Compiled code is kept in {folder}")
    assert folder.parent == tmp_path / "temporary"
    assert why_untrusted(folder) == ""
    assert private_folder(wanted, tmp_path / "temporary")[0] == folder
    folder.chmod(0o777)  # somebody else has taken the name
    other, _ = private_folder(wanted, tmp_path / "temporary")
    assert other != folder
    assert stat.S_IMODE(other.stat().st_mode) == 0o700


def test_links_and_places_where_no_folder_can_be_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert "is a symbolic link" in private_folder(tmp_path / "link", tmp_path / "temporary")[1]
    for wanted in (Path("/dev/null/kernels"), Path("/proc/kernels")):
        folder, remark = private_folder(wanted, tmp_path / "temporary")
        assert f"{wanted}: cannot be used" in remark
        assert folder.is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_replaced(tmp_path: Path) -> None:
    wanted = tmp_path / "kernels"
    wanted.mkdir(mode=0o755)
    os.chown(wanted, 12345, -1)
    assert "belongs to another user" in private_folder(wanted, tmp_path / "temporary")[1]
