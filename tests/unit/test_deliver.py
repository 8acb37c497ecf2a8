"""Who delivers, and when: after one that gave up, and after one that shows no sign of life."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tattle.delivery import fault
from tattle.delivery.deliver import is_given_up
from tattle.delivery.watchdog import end_holders, holders
from tattle.errors import TattleError
from tattle.login.spool import DELIVERER, EMERGENCY_PATH, PATH, WAKE, Spool

HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(str(tmp_path / "spool"))


@pytest.mark.parametrize(
    ("accepted", "noted", "woken", "given_up"),
    [
        (-60, -30, False, True),
        (-60, -30, True, False),
        (-30, -60, False, False),
        (-60, 3600, False, False),
    ],
    ids=["given up", "a flush asks", "accepted since", "the clock was set back since"],
)
def test_what_was_given_up_waits_for_the_next_event(
    accepted: float,
    noted: float,
    woken: bool,
    given_up: bool,
    spool: Spool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    record = tmp_path / "spool" / f"{int((now + accepted) * 1e9):020d}-1"
    record.touch()
    fault.keep(spool, TattleError("EventBridge is away", 69), 1, True, now + noted)
    if woken:
        (tmp_path / "spool" / WAKE).touch()
    assert is_given_up(spool) == given_up


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [(["deliver", PATH], True), (["deliver", EMERGENCY_PATH], True), (["flush"], False)],
)
def test_only_a_deliverer_is_ended_whichever_spool_it_was_started_for(
    arguments: list[str], ours: bool, spool: Spool, tmp_path: Path
) -> None:
    """One that holds both spools names one of them."""
    lock = tmp_path / "spool" / DELIVERER
    command = [sys.executable, "-c", HOLDER, str(lock), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert holders(spool, DELIVERER) == [process.pid]
        assert end_holders(spool, DELIVERER) == ours
        assert (process.poll() is not None) == ours
        process.kill()
