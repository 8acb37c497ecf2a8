"""What root trusts: files and folders that nobody else can have put there, or exchanged. (What
belongs to somebody else takes root to make: tests/instance/test_owners.py.)"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import botocore.session
import pytest

from tattle.aws.credentials import require_trusted_aws_files
from tattle.errors import TattleError
from tattle.trust import private_directory, trusted


def refusal(of: Callable[[str], object], path: Path | str) -> str:
    """What is said of a path that is not trusted."""
    with pytest.raises(TattleError) as caught:
        of(str(path))
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in folders of ours."""
    path = tmp_path / "a/b/file"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_nothing_on_the_way_can_be_written_by_somebody_else(file: Path) -> None:
    assert trusted(str(file)) == str(file)
    for path in (file, file.parent, file.parent.parent):
        mode = stat.S_IMODE(path.stat().st_mode)
        for spoilt in (mode | 0o020, mode | 0o002):
            path.chmod(spoilt)
            assert f"{path} belongs to or can be written" in refusal(trusted, file)
        path.chmod(mode)


def test_links_are_followed_and_what_they_name_has_to_be_trusted(file: Path) -> None:
    root, folder = file.parents[2], file.parent
    (folder / "back").symlink_to("../b")
    (root / "link").symlink_to(folder / "back")
    assert os.path.realpath(trusted(f"{root}/link/file")) == str(file)
    folder.parent.chmod(0o777)
    assert f"{folder.parent} " in refusal(trusted, root / "link/file")


def test_a_sticky_folder_is_no_danger_to_what_is_roots(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "ours").touch()
    assert trusted(str(tmp_path / "ours")) == str(tmp_path / "ours")


@pytest.mark.parametrize("name", ["nothing", "nothing/below", "loop"])
def test_what_does_not_exist_or_never_ends_is_an_error_of_the_system(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"No such file|Too many levels"):
        trusted(str(tmp_path / name))


class TestAPrivateFolder:
    """As the spool and the cache are."""

    def test_it_is_made_and_held_open(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            fd = private_directory(str(tmp_path / "new"))
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        (tmp_path / "new").rename(tmp_path / "moved")
        (tmp_path / "moved/file").touch()
        assert os.listdir(fd) == ["file"]
        os.close(fd)

    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o701])
    def test_others_can_neither_write_nor_read_it(self, mode: int, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        folder.chmod(mode)
        assert "0700" in refusal(private_directory, folder)

    @pytest.mark.parametrize("mode", [0o775, 0o757])
    def test_nobody_else_can_write_the_folder_that_it_is_in(
        self, mode: int, tmp_path: Path
    ) -> None:
        tmp_path.chmod(mode)
        assert f"{tmp_path} " in refusal(private_directory, tmp_path / "folder")
        assert os.listdir(tmp_path) == []

    def test_a_file_a_link_or_a_pipe_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(0o700)
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "file").touch()
        os.mkfifo(tmp_path / "pipe")
        for name in ("link", "file", "pipe"):
            assert f"{tmp_path / name} is not a directory" in refusal(
                private_directory, tmp_path / name
            )


@pytest.mark.parametrize(
    "name", [".aws", ".aws/config", ".aws/credentials", ".aws/models", ".boto", "ca.pem", ""]
)
def test_roots_aws_files_are_such(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(variable)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    (home / ".aws/models").mkdir(parents=True)
    (home / ".aws/config").write_text(f"[default]\nca_bundle = {home}/ca.pem\n")
    for file in (".aws/credentials", ".boto", "ca.pem"):
        (home / file).touch()
    session = botocore.session.Session()
    require_trusted_aws_files(session)
    (home / name).chmod(0o777)
    with pytest.raises(TattleError, match=f"{(home / name)} belongs to or can be written"):
        require_trusted_aws_files(session)
