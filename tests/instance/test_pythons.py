"""One artifact under every Python that a throwaway instance can have for /usr/bin/python3.

The smoke test under each, and what tattle says to an older one: artifact/test_smoke.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from standins.instance import TATTLE, Instance
from support import SYSTEM_PYTHON, eventually, find_pythons, need_pythons, need_root

PYTHONS = find_pythons()
DEFECT = re.compile(r"Traceback|Error\b.*line \d|Warning|defect")


def test_every_series_that_a_stock_distribution_has_is_here() -> None:
    """Amazon Linux 2023 and RHEL 9, Ubuntu 22.04, Debian 12, Ubuntu 24.04, Debian 13."""
    wanted = {"3.9", "3.10", "3.11", "3.12", "3.13"}
    need_pythons(wanted <= set(PYTHONS), f"Python {', '.join(sorted(wanted - set(PYTHONS)))}")


@pytest.mark.root
@pytest.mark.parametrize("version", PYTHONS)
def test_under_each_logins_arrive_also_after_an_outage_and_every_command_runs(
    version: str, artifact: Path
) -> None:
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        box.replace_python(PYTHONS[version])
        output = box.run([SYSTEM_PYTHON, "-IS", "-V"]).stdout
        assert output.startswith(f"Python {version}.")
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

        checked = box.run([TATTLE, "check", "--send", "--json"])
        assert not DEFECT.search(checked.stdout + checked.stderr), checked
        assert "event id" in json.dumps(json.loads(checked.stdout))
        flushed = box.run([TATTLE, "flush"])
        assert (flushed.returncode, flushed.stderr) == (0, ""), flushed
