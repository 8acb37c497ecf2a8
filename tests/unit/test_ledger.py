"""The ledger: one `closed` for each `opened`, in whatever order they come and wherever it stops."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tattle.delivery import ledger
from tattle.delivery import records as delivery_records
from tattle.delivery.ledger import (
    Machine,
    close_ended,
    closed_record,
    ended,
    put_away,
    session_name,
)
from tattle.delivery.records import OPEN, Records
from tattle.event.fields import duration, event_id, session_id
from tattle.login.pam import Session, is_whole, parse
from tattle.login.spool import REJECTED, is_record

BOOT, OTHER_BOOT = "6c2f1d9e-5f0e-4d3b-9a51-3d9f9d2f7a10", "00000000-0000-0000-0000-000000000000"
HERE = Machine(BOOT, "i-abc123abc123")
ALIVE = {42: "1000"}  # start times by process id


def start_of(pid: int) -> str | None:
    return ALIVE.get(pid, "")


def name(pid: int = 41, boot: str = BOOT) -> str:
    return f"{boot}.{pid}.1000"


def record(
    kind: str, pid: int = 41, boot: str = BOOT, instance: str = HERE.instance, user: str = "alice"
) -> bytes:
    items = f"PAM_SERVICE=sshd\0PAM_USER={user}\0PAM_TTY=ssh\0PAM_RHOST=1.2.3.4\0PAM_TYPE={kind}\0"
    items += (
        "TATTLE_UNVERIFIED_SSH_AUTH_INFO_0=password\0TATTLE_TIME=1\0TATTLE_UPTIME=20000000000\0"
    )
    items += f"TATTLE_PARENT={pid}\0TATTLE_PARENT_START=1000\0TATTLE_HOST=here\0"
    items += f"TATTLE_INSTANCE={instance}\0" if instance else ""
    return f"{items}TATTLE_BOOT={boot}\0".encode()


OPENED, CLOSED = record("open_session"), record("close_session")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SETTLE_SECONDS", 0)


@pytest.fixture
def spools(tmp_path: Path) -> list[Records]:
    return [Records(str(tmp_path / "spool")), Records(str(tmp_path / "emergency"))]


def records(spool: Records, directory: str = "") -> list[str]:
    """The paths of the records in a spool."""
    path = Path(spool.path, directory)
    return sorted(str(file) for file in path.glob("*") if is_record(file.name))


def send(spools: list[Records], arrived: list[Session], *paths: str) -> None:
    """What the deliverer does, all at once: send what waits, or these, and put it away."""
    for spool in spools:
        sent = {
            os.path.basename(path): parse(Path(path).read_bytes())
            for path in records(spool)
            if not paths or path in paths
        }
        arrived.extend(sent.values())
        put_away(spools, spool, sent)


def states(arrived: list[Session]) -> list[str]:
    return [session.state for session in arrived]


def look(spools: list[Records], arrived: list[Session]) -> None:
    close_ended(spools, HERE, start_of)
    send(spools, arrived)


def test_a_session_is_named_after_its_process_in_one_run_of_the_machine() -> None:
    assert session_name(parse(OPENED)) == session_name(parse(CLOSED)) == name()


@pytest.mark.parametrize("part", ["PARENT", "PARENT_START", "BOOT"])
@pytest.mark.parametrize("value", ["", "../x", "1/2", "²", "9" * 50])
def test_what_could_be_no_file_has_no_name(part: str, value: str) -> None:
    session = parse(OPENED)
    session.context[f"TATTLE_{part}"] = value
    assert session_name(session) is None


@pytest.mark.parametrize(
    ("names", "boot", "gone"),
    [
        ([name(42)], BOOT, []),
        ([name(41)], BOOT, [name(41)]),
        ([name(42)], OTHER_BOOT, [name(42)]),
        ([f"{BOOT}.42.999"], BOOT, [f"{BOOT}.42.999"]),
        ([name(41)], "", []),
        (["what.ever", BOOT, f"{BOOT}.x.1000"], BOOT, []),
        ([name(43)], BOOT, []),
    ],
    ids=[
        *("lives", "is gone", "was in another run", "its id is another process's"),
        *("this run has no id", "no session's name", "can't be told"),
    ],
)
def test_a_session_has_ended_with_its_process(names: list[str], boot: str, gone: list[str]) -> None:
    def start_of(pid: int) -> str | None:
        return None if pid == 43 else ALIVE.get(pid, "")

    assert ended(names, boot, start_of) == gone


def test_the_ledgers_closed_is_the_session_s_but_an_event_of_its_own() -> None:
    opened = parse(OPENED)
    record = closed_record(OPENED, 5 * 10**9)
    closed = parse(record)
    assert is_whole(record)
    assert closed.pam == {**opened.pam, "PAM_TYPE": "close_session"}
    assert closed.context["TATTLE_TIME"] == str(5 * 10**9)
    assert closed.context["TATTLE_REPORTED_BY"] == "process"
    assert closed.context["TATTLE_INSTANCE"] == HERE.instance
    assert session_id(closed) == session_id(opened)
    assert event_id(closed) not in (event_id(opened), event_id(parse(CLOSED)))
    assert duration(closed) is None


ORDERS = {
    "killed": ("O", "send", "look"),
    "logged out": ("O", "send", "C", "look"),
    "both at once": ("O", "C", "look"),
    "closed is quicker": ("O", "C", "send C", "look", "look"),
    "one after the other": ("O", "send", "C", "send", "look"),
    "nothing is sent for long": ("O", "look", "C", "look"),
    "closed in the other spool": ("O", "send", "C other", "look"),
    "opened in the other spool": ("O other", "send", "C", "look"),
    "opened twice": ("O", "send", "O", "send", "C", "look"),
    "rejected closed": ("O", "send", "C", "reject", "look", "put back", "look"),
    "rejected opened": ("O", "reject", "C", "send", "look", "put back", "look"),
    "1.1 had it": ("C", "send", "look"),
}


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_each_session_gets_one_closed(steps: tuple[str, ...], spools: list[Records]) -> None:
    arrived: list[Session] = []
    for step in steps:
        if step[0] in "OC":
            spools["other" in step].accept(OPENED if step[0] == "O" else CLOSED)
        elif step == "reject":
            (path,) = records(spools[0])
            os.makedirs(f"{spools[0].path}/{REJECTED}")
            os.rename(path, f"{spools[0].path}/{REJECTED}/{os.path.basename(path)}")
        elif step == "put back":
            (path,) = records(spools[0], REJECTED)
            os.rename(path, f"{spools[0].path}/{os.path.basename(path)}")
        elif step == "send C":
            send(spools, arrived, records(spools[0])[-1])
        else:
            (look if step == "look" else send)(spools, arrived)
    look(spools, arrived)
    assert states(arrived).count("closed") == 1
    assert [ledger.names(spool) for spool in spools] == [[], []], "the ledger forgets what is over"


class Crash(Exception):  # noqa: N818
    """The machine stops here."""


class StoppingOs:
    """The os module, until so many steps are done that change the disk."""

    STEPS = ("mkdir", "write", "rename", "unlink", "fsync")

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __getattr__(self, function: str) -> Any:
        if function in self.STEPS:
            self.left -= 1
            if self.left < 0:
                raise Crash
        return getattr(os, function)


@pytest.mark.parametrize("closed_first", [False, True])
def test_a_crash_between_any_two_steps_makes_no_second_closed(
    closed_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in itertools.count():
        spools = [Records(str(tmp_path / f"{steps}"))]
        stopping = StoppingOs(steps)
        arrived: list[Session] = []
        spools[0].accept(OPENED)
        spools[0].accept(CLOSED)
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            for module in (ledger, delivery_records):
                patch.setattr(module, "os", stopping)
            send(spools, arrived, records(spools[0])[closed_first])
            send(spools, arrived)
        for _ in range(3):
            look(spools, arrived)
        copies = {event_id(session) for session in arrived if session.state == "closed"}
        assert len(copies) == 1, f"stopped after {steps} steps"
        assert ledger.names(spools[0]) == []
        if stopping.left > 0:
            assert steps > 5
            return


def test_a_reboot_closes_every_session_that_was_open(spools: list[Records]) -> None:
    arrived: list[Session] = []
    for pid in (42, 43):
        spools[0].accept(record("open_session", pid, OTHER_BOOT))
    send(spools, arrived)
    look(spools, arrived)
    look(spools, arrived)
    assert states(arrived) == ["opened", "opened", "closed", "closed"]


@pytest.mark.parametrize("full", [1, 2])
def test_a_closed_goes_where_there_is_room(
    full: int, spools: list[Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    def accept(record: bytes) -> str:
        raise OSError(errno.ENOSPC, "full")

    arrived: list[Session] = []
    spools[0].accept(record("open_session", boot=OTHER_BOOT))
    send(spools, arrived)
    for spool in spools[:full]:
        monkeypatch.setattr(spool, "accept", accept)
    if full == len(spools):
        with pytest.raises(OSError, match="full"):
            look(spools, arrived)
        monkeypatch.undo()
    look(spools, arrived)
    assert states(arrived) == ["opened", "closed"]


def test_a_session_of_another_machine_is_not_closed_as_this_one_s(spools: list[Records]) -> None:
    """As an image of a machine has it that was made while somebody was logged in."""
    arrived: list[Session] = []
    spools[0].accept(record("open_session", boot=OTHER_BOOT, instance="i-builder"))
    send(spools, arrived)
    close_ended(spools, Machine(BOOT, ""), start_of)
    assert records(spools[0]) == []
    assert ledger.names(spools[0]) == [name(boot=OTHER_BOOT)], "it may be this one's"
    look(spools, arrived)
    assert states(arrived) == ["opened"]
    elsewhere = Path(spools[0].path, "elsewhere")
    assert os.listdir(elsewhere) == [name(boot=OTHER_BOOT)]
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert ledger.names(spools[0]) == []


def test_a_ledger_remembers_when_it_began(spools: list[Records]) -> None:
    assert ledger.since(spools[0]) is None
    ledger.begin(spools[0])
    began = ledger.since(spools[0])
    ledger.begin(spools[0])
    assert began
    assert ledger.since(spools[0]) == began
    assert os.stat(f"{spools[0].path}/{OPEN}").st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "content", ["", "9" * 19], ids=["lost its bytes", "the clock was set back"]
)
def test_a_ledger_that_can_t_say_when_it_began_begins_anew(
    content: str, spools: list[Records]
) -> None:
    ledger.begin(spools[0])
    Path(spools[0].path, OPEN, ".since").write_text(content)
    before = time.time()
    ledger.begin(spools[0])
    assert before <= (ledger.since(spools[0]) or 0) <= time.time()


def test_each_time_that_an_upgrade_is_taken_back_1_1_can_move_the_ledger_away(
    spools: list[Records],
) -> None:
    for _ in range(2):
        spools[0].accept(OPENED)
        send(spools, [])
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{spools[0].path}/{REJECTED}")
        os.rename(f"{spools[0].path}/{OPEN}", f"{spools[0].path}/{REJECTED}/{OPEN}")
        ledger.begin(spools[0])
        assert ledger.names(spools[0]) == [], "1.1 may have sent their `closed`"


def test_systemd_s_own_sessions_which_another_process_closes_are_left_alone(
    spools: list[Records],
) -> None:
    arrived: list[Session] = []
    spools[0].accept(OPENED.replace(b"=sshd", b"=systemd-user"))
    look(spools, arrived)
    look(spools, arrived)
    assert states(arrived) == ["opened"]
