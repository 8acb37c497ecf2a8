"""One artifact under every Python: hook, deliverer, smoke test, and what an old one says.

Each version has a throwaway instance of its own, in which it is /usr/bin/python3.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from standins.instance import TATTLE, Instance
from support import SYSTEM_PYTHON, eventually, find_pythons, need, need_root

PYTHONS = find_pythons()
SMOKE_TEST = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
DEFECT = re.compile(r"Traceback|Error\b.*line \d|Warning|defect")


@pytest.fixture(scope="module", params=PYTHONS)
def version(request: pytest.FixtureRequest) -> str:
    """Such as "3.9"."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def module_box(version: str, artifact: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        box.replace_python(PYTHONS[version])
        yield box


@pytest.fixture
def box(module_box: Instance) -> Instance:
    module_box.reset()
    return module_box


def test_every_series_that_a_stock_distribution_has_is_here() -> None:
    """Amazon Linux 2023 and RHEL 9, Ubuntu 22.04, Debian 12, Ubuntu 24.04, Debian 13."""
    wanted = {"3.9", "3.10", "3.11", "3.12", "3.13"}
    need(wanted <= set(PYTHONS), f"needs Python {', '.join(sorted(wanted - set(PYTHONS)))}")


@pytest.mark.root
class TestUnderEach:
    def test_logins_arrive_also_after_an_outage_and_where_they_wait(
        self, box: Instance, version: str
    ) -> None:
        told = box.run([SYSTEM_PYTHON, "-IS", "-V"]).stdout
        assert told.startswith(f"Python {version}.")
        done = box.ssh("alice", "echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n"), done
        details = [entry.detail for entry in box.eventbridge.wait_for(2)]
        assert [detail["session"] for detail in details] == ["opened", "closed"]
        assert {detail["username"] for detail in details} == {"alice"}
        eventually(lambda: not box.spool())
        assert box.log() == []
        box.eventbridge.set(fault=503)
        with box.session() as session:
            assert session.hook("open_session").returncode == 0
            assert session.hook("close_session").returncode == 0
        assert len(box.spool()) == 2
        box.eventbridge.set(fault=None)
        sessions = [entry.detail["session"] for entry in box.eventbridge.wait_for(4, 60)]
        assert sessions[2:] == ["opened", "closed"]
        assert box.hook(arguments=["--wait=30"]).returncode == 0
        assert len(box.eventbridge.entries()) == 5

    def test_every_command_runs(self, box: Instance) -> None:
        done = box.run([TATTLE], env=SMOKE_TEST)
        assert (done.returncode, done.stderr) == (0, ""), done
        (entry,) = box.eventbridge.entries()
        told = f"sent: session opened for test, event id {entry.event_id}, event bus default in"
        assert done.stdout == f"{told} us-east-1\n"
        flushed = box.run([TATTLE, "flush"])
        assert (flushed.returncode, flushed.stderr) == (0, ""), flushed
        checked = box.run([TATTLE, "check", "--send", "--json"])
        assert not DEFECT.search(checked.stdout + checked.stderr), checked
        assert "event id" in json.dumps(json.loads(checked.stdout))
        assert len(box.eventbridge.entries()) == 2
        box.eventbridge.set(fault="access-denied")
        done = box.run([TATTLE], env=SMOKE_TEST)
        assert (done.returncode, done.stdout) == (77, "")
        assert re.fullmatch(r"tattle: .*AccessDenied.*\n", done.stderr)
        assert not DEFECT.search(done.stderr)


def older_pythons() -> dict[str, str]:
    """The machine's Pythons before 3.9, Python 2 too: "3.8" → path."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for path in [*Path("/usr/bin").glob("python?.?"), *pyenv.glob("*/bin/python?.?")]:
        major, minor = map(int, path.name[len("python") :].split("."))
        if (major, minor) < (3, 9):
            found[f"{major}.{minor}"] = str(path)
    return dict(sorted(found.items()))


@pytest.mark.parametrize("environment", [{}, {"PAM_SERVICE": "sshd", **SMOKE_TEST}])
@pytest.mark.parametrize("python", older_pythons().values(), ids=older_pythons())
def test_an_older_one_gets_one_clear_line(
    artifact: Path, python: str, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [python, "-ISXutf8" if "python3" in python else "-S", str(artifact)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert re.fullmatch(r"tattle: needs Python 3\.9 or newer, and \S+ is \d\.\d\n", done.stderr)
    assert done.stdout == ""
