"""What is accepted is delivered: when AWS is away, throttles or refuses, and when the spool is not
as it should be."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from standins import RoleCredentials
from standins.eventbridge import Rejection
from standins.imds import IDENTITY_PATH, role_credentials
from standins.instance import REMOTE_HOST, SPOOL, TATTLE, Hook, Instance
from standins.outages import OUTAGES
from support import eventually, need_root

if TYPE_CHECKING:
    pass

QUICK_SECONDS = 5.0  # a login that waited for nothing, on a busy machine: far below any timeout
OUTAGE_SECONDS = 3.0  # long enough for an event's Time to tell it from the moment of sending
THROTTLED = 100  # events
EMERGENCY = "/run/tattle-spool"


def usernames(box: Instance) -> list[str]:
    return [detail["username"] for detail in box.eventbridge.details()]


def cpu_seconds(box: Instance) -> float:
    """What the one deliverer has used."""
    (deliverer,) = box.deliverers()
    fields = box.read(f"/proc/{deliverer.pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


# Outages


def is_empty(box: Instance) -> bool:
    return not box.spool()


def at_work(box: Instance) -> bool:
    """Whether the deliverer has been trying for a while."""
    return box.imds.connection_count() + box.eventbridge.connection_count() > 2


@pytest.mark.root
@pytest.mark.slow
def test_a_login_in_an_outage_is_quick_and_reported_afterwards(artifact: Path) -> None:
    """Meanwhile the deliverer sleeps. All outages at the same time, each on its own instance."""
    need_root(*Instance.TOOLS)
    with ExitStack() as entered:
        boxes = {outage: entered.enter_context(Instance(artifact)) for outage in OUTAGES}
        began = time.time()
        for outage, box in boxes.items():
            outage.begin(box)
            before_login = time.monotonic()
            assert box.ssh("ubuntu", "true").returncode == 0
            assert time.monotonic() - before_login < QUICK_SECONDS, outage
        ended = time.time()
        for outage, box in boxes.items():
            if outage.hangs:
                eventually(partial(at_work, box))
            else:
                box.syslog.wait_for("events wait in the spool")
        used = {outage: cpu_seconds(box) for outage, box in boxes.items()}
        time.sleep(OUTAGE_SECONDS)
        for outage, box in boxes.items():
            assert box.eventbridge.entries() == [], outage
            assert len(box.records()) == 2, outage
            assert cpu_seconds(box) - used[outage] < 0.4, outage
            assert len(box.eventbridge.calls()) < 20, outage
            outage.end(box)
        for outage, box in boxes.items():
            entries = box.eventbridge.wait_for(2, timeout=30)
            assert [entry.detail["session"] for entry in entries] == ["opened", "closed"]
            for entry in entries:
                assert int(began) <= entry.raw["Time"] <= ended + 1 < time.time() - 1
            faults = box.log_with("events wait in the spool")
            assert len(faults) <= 1 if outage.hangs else len(faults) == 1, outage
            for fault in faults:
                assert outage.message in fault
                box.syslog.wait_for("delivering again")
            eventually(partial(is_empty, box))
            assert len(box.eventbridge.entries()) == 2, outage
            assert len(box.log()) == 2 * len(faults), outage


@pytest.mark.root
class TestFlush:
    def test_nothing_to_do_is_fine(self, instance: Instance) -> None:
        done = instance.run([TATTLE, "flush"])
        assert (done.returncode, done.stdout) == (0, "0 delivered, 0 remain\n")
        assert instance.eventbridge.calls() == []
        assert instance.imds.requests() == []

    def test_identity_and_credentials_are_asked_for_once(self, instance: Instance) -> None:
        with instance.locked(), instance.session() as session:
            results = session.run(*(Hook(user=f"u{number}") for number in range(35)))
            assert [result.returncode for result in results] == [0] * 35
        assert instance.run([TATTLE, "flush"]).returncode == 0
        assert [call.entry_count for call in instance.eventbridge.calls()] == [10, 10, 10, 5]
        paths = [request.path for request in instance.imds.requests()]
        assert paths.count(IDENTITY_PATH) == 1
        assert len([path for path in paths if path.endswith("security-credentials/tattle")]) == 1


# Credentials


@pytest.mark.root
def test_a_deliverer_that_stays_gets_new_credentials(instance: Instance) -> None:
    old = RoleCredentials("ASIAOLDOLDOLDOLDOLD0", "old-secret", "old-token")
    new = RoleCredentials("ASIANEWNEWNEWNEWNEW0", "new-secret", "new-token")
    instance.imds.set(credentials=role_credentials(old, lifetime=60))
    instance.eventbridge.set(credentials=(old,))
    with instance.session() as session:
        assert session.hook(user="before").returncode == 0
        instance.eventbridge.wait_for(1)
        instance.imds.set(credentials=role_credentials(new))
        instance.eventbridge.set(credentials=(new,))
        assert session.hook(user="after").returncode == 0
        instance.eventbridge.wait_for(2)
    assert usernames(instance) == ["before", "after"]
    outcomes = [call.outcome for call in instance.eventbridge.calls()]
    # It asks ten minutes before they expire. (Of shorter ones botocore thinks that IMDS is in
    # trouble, and stays with them until EventBridge refuses.)
    assert outcomes in (["accepted"] * 2, ["accepted", "UnrecognizedClientException", "accepted"])


@pytest.mark.root
def test_credentials_that_eventbridge_calls_expired_are_asked_for_again(
    instance: Instance,
) -> None:
    instance.eventbridge.set(fault="expired-token", fault_times=1)
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(1)
    instance.syslog.wait_for("delivering again")
    assert len(instance.log_with("ExpiredToken")) == 1


# Single entries that fail


@pytest.mark.root
def test_of_a_batch_only_what_failed_is_sent_again(instance: Instance) -> None:
    names = instance.accept("fine", "unlucky", "malformed", "good")
    malformed = Rejection("malformed", code="MalformedDetail", message="Detail is malformed.")
    unlucky = Rejection("unlucky", code="InternalFailure")
    instance.eventbridge.set(rejections=[unlucky, malformed])
    done = instance.run([TATTLE, "flush"])
    assert (done.returncode, done.stdout) == (75, "2 delivered, 1 remain, 1 rejected\n")
    assert "InternalFailure" in done.stderr
    instance.eventbridge.set(rejections=[])
    done = instance.run([TATTLE, "flush"])
    assert re.fullmatch("[01] delivered, 0 remain\n", done.stdout), done  # it may be quicker
    assert usernames(instance) == ["fine", "good", "unlucky"]
    first, *later = [call.entry_count for call in instance.eventbridge.calls()]
    assert (first, {*later}) == (4, {1})
    rejected = f"{SPOOL}/rejected/{names[2]}"
    assert "PAM_USER=malformed" in instance.read(rejected)
    (line,) = instance.log_with("rejected: ")
    assert rejected in line
    assert "MalformedDetail" in line
    assert instance.spool() == ["rejected"]


@pytest.mark.root
def test_entries_that_stay_refused_keep_no_others_back(instance: Instance) -> None:
    denied = [f"denied{number}" for number in range(12)]
    instance.accept(*denied)
    reason = Rejection("denied", code="AccessDeniedException", message="not on this bus")
    instance.eventbridge.set(rejections=[reason])
    with instance.session() as session:
        for number in range(3):
            assert session.hook(user=f"other{number}").returncode == 0
            arrived = instance.eventbridge.wait_for(number + 1, timeout=15)
            assert arrived[-1].detail["username"] == f"other{number}"
    eventually(lambda: len(instance.spool()) == 12)  # removed a moment after its arrival
    assert len(instance.log_with("not on this bus")) == 1
    instance.eventbridge.set(rejections=[])
    instance.eventbridge.wait_for(15, timeout=30)
    assert usernames(instance)[3:] == denied


@pytest.mark.root
def test_fifty_events_of_the_largest_size_all_arrive(instance: Instance) -> None:
    """Ten of them are more than one call takes."""
    name = "n" * 60_000
    with instance.locked() as spool, instance.session() as session:
        assert session.hook().returncode == 0
        (first,) = instance.spool()
        record = (spool / first).read_bytes()
        for number in range(49):
            large = record.replace(b"PAM_USER=ubuntu", f"PAM_USER={number}{name}".encode())
            (spool / f"{int(first[:20]) + 1 + number:020d}-1").write_bytes(large)
    done = instance.run([TATTLE, "flush"])
    assert (done.returncode, done.stdout) == (0, "50 delivered, 0 remain\n")
    assert len(instance.eventbridge.entries()) == 50
    assert {call.outcome for call in instance.eventbridge.calls()} == {"accepted"}


# A spool that is not as it should be


@pytest.mark.root
def test_what_is_no_record_is_rejected(instance: Instance) -> None:
    (good,) = instance.accept("good")
    spool = instance.path(SPOOL)
    earlier = int(good[:20]) - 100

    def record_name(number: int) -> Path:
        return spool / f"{earlier + number:020d}-1"

    whole = (spool / good).read_bytes()
    record_name(1).write_bytes(whole[: len(whole) // 2])
    record_name(2).touch()
    record_name(3).write_bytes(os.urandom(1000))
    record_name(4).symlink_to("/etc/shadow")
    record_name(5).mkdir()
    (record_name(5) / "inside").touch()
    os.mkfifo(record_name(6))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"/proc/self/cwd/{os.path.relpath(record_name(7))}"[:100])
    (spool / "README").write_text("what is this folder?")
    (spool / "dangling").symlink_to("/nowhere")
    (spool / "folder").mkdir()
    os.mkfifo(spool / "fifo")
    (spool / os.fsdecode(b"\xff\n\x1b[2J")).touch()
    (spool / "-rf").touch()
    (spool / ".hidden").touch()
    no_records = {*instance.spool()} - {good}
    assert len(no_records) == 14
    done = instance.run([TATTLE, "flush"])
    assert (done.returncode, done.stdout) == (0, "1 delivered, 0 remain, 7 rejected\n"), done
    assert usernames(instance) == ["good"]
    assert instance.spool() == ["rejected"]
    assert {*os.listdir(spool / "rejected")} == no_records
    assert len(instance.log_with("rejected: ")) == 14
    assert all(line.message.isprintable() for line in instance.log())
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(2)


@pytest.mark.root
def test_what_cannot_be_rejected_stops_nothing(instance: Instance) -> None:
    """Its place may be taken, or `rejected` be something else."""
    instance.accept("first")
    spool = instance.path(SPOOL)
    (spool / "rejected" / "folder" / "full").mkdir(parents=True)
    (spool / "folder" / "full").mkdir(parents=True)
    assert instance.hook(user="second").returncode == 0
    instance.eventbridge.wait_for(2)
    instance.kill_deliverers()
    instance.run(["rm", "-r", SPOOL], check=True)
    instance.accept("third")
    (spool / "rejected").write_text("no folder")
    (spool / "foreign").touch()
    assert instance.hook(user="fourth").returncode == 0
    instance.eventbridge.wait_for(4)
    assert usernames(instance) == ["first", "second", "third", "fourth"]


@pytest.mark.root
def test_a_torn_record_is_never_sent_as_something_else(instance: Instance) -> None:
    """Cut at any byte it is rejected, unless nothing is missing that is reported."""
    with instance.locked() as spool, instance.session() as session:
        connection = ("SSH_CONNECTION", f"{REMOTE_HOST} 50000 127.0.0.1 22")
        assert session.hook(before=[connection]).returncode == 0
        (name,) = instance.spool()
        record = (spool / name).read_bytes()
        for length in range(len(record)):
            (spool / f"{int(name[:20]) + 1 + length:020d}-1").write_bytes(record[:length])
    instance.write("/etc/tattle.conf", "[tattle]\nfields = username time session_id session\n")
    assert instance.run([TATTLE, "flush"]).returncode == 0
    whole, *others = (entry.raw for entry in instance.eventbridge.entries())
    assert whole["Detail"].startswith('{"username": "ubuntu"')
    assert [other for other in others if other != whole] == []
    rejected = os.listdir(spool / "rejected")
    assert len(rejected) + len(others) == len(record)


@pytest.mark.root
def test_what_a_killed_hook_left_is_rejected_later(instance: Instance) -> None:
    instance.accept("good")
    spool = instance.path(SPOOL)
    fresh, old = spool / ".accepting-1", spool / ".accepting-2"
    fresh.touch()
    old.touch()
    os.utime(old, times=(time.time() - 3600,) * 2)
    assert instance.run([TATTLE, "flush"]).returncode == 0
    assert instance.spool() == [".accepting-1", "rejected"]
    assert os.listdir(spool / "rejected") == [".accepting-2"]


def room(box: Instance, size: str) -> Path:
    """Give the spool a small file system of its own; its folder above."""
    options = ["-o", f"mode=755,{size}", "t", "/var/spool"]
    box.run(["mount", "-t", "tmpfs", *options], check=True)
    return box.path("/var/spool")


@pytest.fixture
def _room_is_taken_back(instance: Instance) -> Iterator[None]:
    yield
    instance.kill_deliverers()
    while instance.run(["umount", "/var/spool"]).returncode == 0:
        pass
    instance.run(["mount", "-t", "tmpfs", "-o", "mode=755", "t", "/var/spool"], check=True)
    instance.run(["rm", "-rf", EMERGENCY], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("_room_is_taken_back")
@pytest.mark.parametrize("full", ["size=4m", "nr_inodes=100"])
def test_what_a_full_disk_has_left_is_left_to_others(instance: Instance, full: str) -> None:
    """A twentieth of it. What comes then waits in /run, and nothing is lost."""
    spool = room(instance, full)
    filler = 0
    with instance.locked(), instance.session() as session:
        assert session.hook(user="fits").returncode == 0
        while len(instance.spool()) == filler + 1:
            filler += 1
            (spool / f"filler-{filler}").write_bytes(b"x" * 2**17 * ("size" in full))
            assert session.hook(user=f"u{filler}").returncode == 0
        line = instance.syslog.wait_for(f"an event waits in {EMERGENCY}")
        assert "the disk is full" in line.message
        (spool / "filler-1").unlink()
        (spool / "filler-2").unlink()
        assert session.hook(user="fits-again").returncode == 0
        assert len(instance.log()) == 1
    assert instance.run([TATTLE, "flush"]).returncode == 0
    assert {*usernames(instance)} == {"fits", *(f"u{n + 1}" for n in range(filler)), "fits-again"}


@pytest.mark.root
@pytest.mark.usefixtures("_room_is_taken_back")
@pytest.mark.parametrize("mount", ["ro", "size=4k,nr_inodes=1"])
def test_a_disk_that_takes_nothing_loses_nothing(instance: Instance, mount: str) -> None:
    room(instance, mount)
    began = time.time()
    assert instance.ssh("ubuntu", "true").returncode == 0
    opened, closed = instance.eventbridge.wait_for(2)
    states = [opened.detail["session"], closed.detail["session"]]
    assert states == ["opened", "closed"]
    assert int(began) <= opened.raw["Time"] <= time.time()
    assert len(instance.log_with(f"an event waits in {EMERGENCY}")) == 2


class TestTheEmergencySpool:
    """/run/tattle-spool, where /var/spool/tattle can't be written."""

    pytestmark = pytest.mark.root
    LIMIT = 2000

    @pytest.fixture(autouse=True)
    def _no_other(self, instance: Instance) -> Iterator[None]:
        instance.path(SPOOL).write_text("no folder")
        yield
        instance.kill_deliverers()
        instance.run(["rm", "-rf", EMERGENCY], check=True)

    def waiting(self, box: Instance) -> list[str]:
        folder = box.path(EMERGENCY)
        return [name for name in os.listdir(folder) if re.fullmatch(r"\d{20}-\d+", name)]

    def accept(self, box: Instance, *users: str) -> None:
        """Have events wait there, with nobody who delivers them."""
        box.eventbridge.set(fault="refuse")
        with box.session() as session:
            for user in users:
                assert session.hook(user=user).returncode == 0
        box.kill_deliverers()
        box.eventbridge.set(fault=None)

    def test_it_is_roots_alone_and_a_flush_says_what_is_wrong_with_the_other(
        self, instance: Instance
    ) -> None:
        self.accept(instance, "one")
        folder = instance.path(EMERGENCY)
        assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, 0)
        (name,) = self.waiting(instance)
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        done = instance.run([TATTLE, "flush"])
        assert done.returncode not in (0, 75)
        assert re.fullmatch(r"tattle: .*/var/spool.*\n", done.stderr)

    def test_an_outage_and_a_crash_of_its_deliverer_lose_nothing(self, instance: Instance) -> None:
        began = time.time()
        self.accept(instance, "one", "two")
        ended = time.time()
        assert len(self.waiting(instance)) == 2
        time.sleep(1 + ended % 1)
        assert instance.hook(user="three").returncode == 0
        entries = instance.eventbridge.wait_for(3)
        assert usernames(instance) == ["one", "two", "three"]
        assert all(int(began) <= entry.raw["Time"] <= ended for entry in entries[:2])
        eventually(lambda: not self.waiting(instance))

    @pytest.mark.parametrize("by", ["hook", "flush"])
    def test_once_the_usual_spool_is_there_again_it_is_delivered(
        self, instance: Instance, by: str
    ) -> None:
        self.accept(instance, "one", "two")
        instance.path(SPOOL).unlink()
        if by == "hook":
            assert instance.hook(user="three").returncode == 0
            instance.eventbridge.wait_for(3)
        else:
            done = instance.run([TATTLE, "flush"])
            assert (done.returncode, done.stdout) == (0, "2 delivered, 0 remain\n"), done
        assert {*usernames(instance)} >= {"one", "two"}
        eventually(lambda: not self.waiting(instance))

    @pytest.mark.parametrize("caller", [None, "one"], ids=["logs in", "calls su"])
    def test_one_user_can_fill_only_half_of_what_the_others_have_left(
        self, caller: str | None, instance: Instance
    ) -> None:
        instance.eventbridge.set(fault="refuse")
        assert instance.hook(user="bob" if caller else "one", ruser=caller).returncode == 0
        instance.kill_deliverers()
        (first,) = self.waiting(instance)
        folder = instance.path(EMERGENCY)
        for number in range(1, self.LIMIT // 2):
            os.link(folder / first, folder / f"{int(first[:20]) + number:020d}-1")
        with instance.session() as session:
            assert session.hook(user="one").returncode == os.EX_CANTCREAT
            assert session.hook(user="carol", ruser="one").returncode == os.EX_CANTCREAT
            for _ in range(3):
                assert session.hook(user="bob").returncode == 0
        assert len(self.waiting(instance)) == self.LIMIT // 2 + 3
        line = instance.syslog.wait_for("an event is lost")
        assert "'one' has used up a share" in line.message
        assert "PAM_USER=one" in line.message

    def test_it_is_capped_and_what_is_too_much_is_logged_with_a_status(
        self, instance: Instance
    ) -> None:
        self.accept(instance, "one")
        instance.kill_deliverers()
        (first,) = self.waiting(instance)
        folder = instance.path(EMERGENCY)
        for number in range(1, self.LIMIT):
            os.link(folder / first, folder / f"{int(first[:20]) + number:020d}-1")
        instance.syslog.clear()
        instance.eventbridge.set(fault="refuse")
        assert instance.hook(user="too-much").returncode == os.EX_CANTCREAT
        line = instance.syslog.wait_for("an event is lost")
        assert f"{EMERGENCY}: {self.LIMIT} records are waiting" in line.message
        assert "PAM_USER=too-much" in line.message
        assert len(self.waiting(instance)) == self.LIMIT

    def test_where_neither_can_be_written_the_log_has_the_event(self, instance: Instance) -> None:
        instance.write(EMERGENCY, "no folder")
        assert instance.hook().returncode == os.EX_CANTCREAT
        line = instance.syslog.wait_for("an event is lost")
        for text in (SPOOL, EMERGENCY, "PAM_USER=ubuntu", "PAM_RHOST=1.2.3.4"):
            assert text in line.message
