"""What belongs to somebody else is not trusted. (What others can write: unit/test_trust.py.)"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support import need_root
from tattle.errors import TattleError
from tattle.trust import private_directory, trusted

pytestmark = pytest.mark.root

ALICE = 6002


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in folders of root's."""
    need_root()
    path = tmp_path / "a/b/file"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def refusal(of: Callable[[str], object], path: Path) -> str:
    """What is said of a path that is not trusted."""
    with pytest.raises(TattleError) as caught:
        of(str(path))
    return str(caught.value)


def test_nothing_on_the_way_belongs_to_somebody_else(file: Path) -> None:
    for path in (file, file.parent, file.parent.parent):
        os.chown(path, ALICE, 0)
        assert f"{path} belongs to or can be written" in refusal(trusted, file)
        os.chown(path, 0, ALICE)  # a group that can't write does not matter
        assert trusted(str(file)) == str(file)


def test_links_of_somebody_elses_are_not_followed(file: Path) -> None:
    link = file.parents[2] / "link"
    link.symlink_to(file)
    os.lchown(link, ALICE, 0)
    assert f"{link} " in refusal(trusted, link)


def test_a_file_of_somebody_elses_in_a_sticky_folder_is_not_trusted(file: Path) -> None:
    file.parent.chmod(0o1777)
    os.chown(file, ALICE, 0)
    assert f"{file} " in refusal(trusted, file)


def test_a_private_folder_belongs_to_nobody_else(file: Path) -> None:
    folder = file.parent
    folder.chmod(0o700)
    os.chown(folder, ALICE, ALICE)
    assert "must belong to root" in refusal(private_directory, folder)
