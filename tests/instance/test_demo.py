"""The demo shows what it says, both ways, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from standins.instance import Instance
from support import ROOT, need, need_root

NOBODY = 65534
AS_NOBODY = """\
mount --bind "$0" /etc/passwd &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"
"""
TESTS = ROOT / "tests"
DEMO = ("-m", "tools.demo")
WITHOUT_TATTLE = """\
import sys
from pathlib import Path
from tools import demo
demo.ARTIFACT = Path("/bin/true")
demo.GIVE_UP_AFTER_SECONDS = 1
sys.exit(demo.main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is anybody's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def run(*arguments: str, before: Sequence[str] = (), temporary: Path) -> tuple[int, str]:
    """Run Python as `./build.sh demo` does; its exit status and output, the errors too."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "TMPDIR": str(temporary),
    }
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [*before, sys.executable, *arguments]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        env=environment,
        cwd=TESTS,
        timeout=60,
        **both,  # type: ignore[call-overload]
    )
    return done.returncode, done.stdout


def events(output: str) -> list[dict[str, Any]]:
    """The events that the demo printed."""
    return [json.loads(event) for event in re.findall(r"^\{$.+?^\}$", output, re.DOTALL | re.M)]


def check(output: str) -> None:
    opened, closed = events(output)
    assert opened["source"] == closed["source"] == "com.unbounce.tattle"
    assert opened["detail"] == {
        "username": "ubuntu",
        "remote_host": "1.2.3.4",
        "session": "opened",
    }
    assert closed["detail"] == {**opened["detail"], "session": "closed"}
    assert opened["id"] != closed["id"]
    assert "Traceback" not in output


@pytest.mark.root
def test_by_root_it_logs_in_over_ssh(artifact: Path, tmp_path: Path) -> None:
    need_root(*Instance.TOOLS)
    status, output = run(*DEMO, temporary=tmp_path)
    assert status == 0, output
    check(output)
    assert "logs in: ssh ubuntu@" in output
    assert "shell" not in output
    assert "needs" not in output
    assert ".venv-test, some 800 MB" in output
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_without_root_it_says_so_and_uses_a_shell(artifact: Path, folder: Path) -> None:
    need_root("unshare", "setpriv", "mount")
    home = folder / "home"
    temporary = folder / "tmp"
    for own in (home, temporary):
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
    passwd = folder / "passwd"
    passwd.write_text(f"nobody:x:{NOBODY}:{NOBODY}::{home}:/bin/sh\n")
    become = ["unshare", "--mount", "sh", "-c", AS_NOBODY, str(passwd)]
    status, _ = run("-c", "import tools.demo", before=become, temporary=temporary)
    need(status == 0, "needs a checkout that everybody may read")

    status, output = run(*DEMO, before=become, temporary=temporary)
    assert status == 0, output
    check(output)
    assert "No real login here, that needs root." in output
    assert "throwaway instance" not in output  # nothing is announced that can't be done
    assert 'PAM_TYPE="close_session"' in output
    assert os.listdir(temporary) == os.listdir(home) == []


@pytest.mark.root
@pytest.mark.parametrize("installed", [False, True])
def test_root_without_namespaces_leaves_an_installed_tattle_alone(
    artifact: Path, tmp_path: Path, installed: bool
) -> None:
    need_root("unshare", "setpriv", "mount")
    script = "mount -t tmpfs tmpfs /var/cache\n"
    script += "mkdir /var/cache/tattle /var/cache/tattle/its-build\n" if installed else ""
    script += 'setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"\n'
    script += "status=$?\nls /var/cache /var/cache/tattle\nexit $status"
    become = ["unshare", "--mount", "sh", "-c", script, "-"]
    status, output = run(*DEMO, before=become, temporary=tmp_path)
    assert "No real login here, that needs namespaces (Operation not permitted)." in output
    if installed:
        assert "It went wrong: root's /var/cache/tattle is there" in output
        assert status == 1
        assert output.endswith("its-build\n")
    else:
        assert "Both have arrived." in output
        assert "cannot access '/var/cache/tattle'" in output


def test_an_event_that_does_not_arrive_is_a_failure(artifact: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        need_root(*Instance.TOOLS)  # else root's cache, which other tests use, stops the demo
    status, output = run("-c", WITHOUT_TATTLE, temporary=tmp_path)
    assert status == 1, output
    assert "It went wrong: no event within 1 seconds" in output
    assert events(output) == []
    assert os.listdir(tmp_path) == []
