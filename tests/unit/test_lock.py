"""Who holds a lock, and when a holder without a heartbeat is ended, or left alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tattle.delivery.lock import DelivererLock, FileLock, holder, is_of_1_0, is_of_1_1
from tattle.delivery.records import DELIVERER, Records
from tattle.delivery.watchdog import become_standby, end_holder
from tattle.login.spool import EMERGENCY_PATH, PATH, STANDBY

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tattle.delivery.lock import DelivererLock
from tattle.delivery.records import Records
print(DelivererLock(Records(sys.argv[2])).acquire(), flush=True)
time.sleep(60)
"""
FLOCK = "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY); {}"
FLOCK = FLOCK.format("fcntl.flock(fd, fcntl.LOCK_EX); print(True, flush=True); time.sleep(60)")
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(str(tmp_path / "spool"))


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            assert running.stdout.readline() == "True\n"
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [(["deliver", PATH], True), (["deliver", EMERGENCY_PATH], True), (["flush"], False)],
)
def test_only_a_deliverer_is_ended_whichever_spool_it_was_started_for(
    arguments: list[str], ours: bool, records: Records
) -> None:
    """One that holds both spools names one of them."""
    with process(HOLDER, str(SOURCE), records.path, *arguments) as running:
        found = holder(records, DELIVERER)
        assert found
        assert (found.pid, found.is_alive(), found.is_in_another_container()) == (
            running.pid,
            True,
            False,
        )
        assert end_holder(records, DELIVERER) == ours
        time.sleep(0.1)
        assert (running.poll() is not None) == ours


@pytest.mark.parametrize("change", ["another start", "another container", "nothing said"])
def test_a_process_that_only_has_its_id_is_left_alone(change: str, records: Records) -> None:
    """An id that was given again; one that is another process's in another container; 1.1's."""
    with process(HOLDER, str(SOURCE), records.path, "deliver", PATH) as running:
        path = Path(records.path, DELIVERER)
        pid, start, namespace = path.read_text().split()
        start = start + "1" if change == "another start" else start
        namespace = "pid:[1]" if change == "another container" else namespace
        path.write_text(f"{pid} {start} {namespace}" if change != "nothing said" else "")
        assert not end_holder(records, DELIVERER)
        time.sleep(0.1)
        assert running.poll() is None


@pytest.mark.parametrize("name", [".", ".deliverer"])
def test_tattle_1_0_and_1_1_are_excluded_and_exclude(name: str, records: Records) -> None:
    """1.0 locks the directory, 1.1 the file."""
    ours = DelivererLock(records)
    Path(records.path, DELIVERER).touch()
    with process(FLOCK, f"{records.path}/{name}"):
        assert not ours.acquire()
        assert is_of_1_1(records) == (name == DELIVERER)
    assert not is_of_1_1(records)
    assert ours.acquire()
    assert not is_of_1_1(records)
    theirs = os.open(f"{records.path}/{name}", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(theirs)


def test_a_standby_is_not_needed_where_1_0_delivers(records: Records) -> None:
    """It sets aside what it does not know: each login would start another one."""
    assert not is_of_1_0(records)
    with process(FLOCK, records.path):
        assert is_of_1_0(Records(records.path))
        assert become_standby(Records(records.path)) is None
        assert not Path(records.path, STANDBY).exists()
        assert not DelivererLock(Records(records.path)).acquire()


def test_a_lock_counts_only_while_its_name_is_what_is_locked(records: Records) -> None:
    first, second = FileLock(records, STANDBY), FileLock(records, STANDBY)
    assert first.acquire()
    assert not second.acquire()
    os.unlink(f"{records.path}/{STANDBY}")
    assert not first.is_held()
    assert second.acquire()
    assert second.is_held()
    second.release()
    assert not second.is_held()
    assert holder(records, STANDBY) is None
    assert first.acquire()


def test_nobody_is_the_deliverer_of_a_directory_that_has_been_replaced(records: Records) -> None:
    lock = DelivererLock(records)
    assert lock.acquire()
    os.rename(records.path, f"{records.path}-moved")
    assert not lock.keep()
    other = DelivererLock(Records(records.path))
    assert other.acquire()
    assert not lock.keep()
