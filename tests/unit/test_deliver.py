"""A deliverer in the tests' process: what it sends, keeps, rejects, and leaves to the next one."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from standins.eventbridge import EventBridge, Rejection
from standins.imds import Imds
from tattle.delivery import batches, deliver, last_error, ledger
from tattle.delivery.batches import Sender
from tattle.delivery.deliver import CALL_INTERVAL_SECONDS, Deliverer, is_given_up
from tattle.delivery.due import GIVE_UP_AFTER, Due, Outcome
from tattle.delivery.ledger import LOOK_SECONDS
from tattle.delivery.lock import DelivererLock
from tattle.delivery.queue import Queue
from tattle.delivery.records import DELIVERER, ELSEWHERE, OPEN, WAKE, Records
from tattle.delivery.reporter import Reporter
from tattle.delivery.watchdog import Heartbeat
from tattle.errors import TattleError
from tattle.event.config import Config
from tattle.login.pam import Session
from tattle.login.spool import REJECTED, TEMPORARY

THROTTLED = 100  # events


@dataclass
class Clock:
    """Stands for the time module: to sleep takes no time, and the clock goes on by it."""

    at: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    """What happens during the first sleep after so many seconds."""
    slept: list[float] = field(default_factory=list)
    passed: float = 0.0
    """Seconds that went by otherwise."""

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        while self.at and self.at[0][0] <= sum(self.slept):
            self.at.pop(0)[1]()

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.slept) + self.passed

    def time(self) -> float:
        return time.time() + sum(self.slept) + self.passed


@dataclass
class InProcess:
    """A deliverer with a spool of its own."""

    deliverer: Deliverer
    spool: Path
    clock: Clock

    def put(self, number: int, **context: str) -> None:
        """A record as the hook writes it."""
        moment = 1_700_000_000_000_000_000 + number * 10**9
        more = "".join(f"{name}={value}\0" for name, value in context.items())
        record = (
            f"PAM_SERVICE=sshd\0PAM_USER=u{number:04d}\0PAM_RHOST=1.2.3.4\0PAM_TYPE=open_session\0"
            f"TATTLE_TIME={moment}\0TATTLE_UPTIME=1\0TATTLE_PARENT=7\0TATTLE_PARENT_START=1\0{more}"
            "TATTLE_BOOT=5da1f40c-83c5-4317-82ba-029ee4990000\0"
        )
        (self.spool / f"{moment:020d}-7").write_text(record)

    def left(self) -> list[str]:
        """What waits in the spool."""
        return [path.name for path in self.spool.iterdir() if path.name[0].isdigit()]

    def records(self) -> Records:
        return self.deliverer.queue.spools[0]


@pytest.fixture
def in_process(
    tmp_path: Path, imds: Imds, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> InProcess:
    clock = Clock()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
    monkeypatch.setattr(deliver, "time", clock)
    monkeypatch.setattr(batches, "load", lambda: Config(endpoint_url=eventbridge.url))
    spool = tmp_path / "spool"
    spool.mkdir(0o700)
    return InProcess(deliverer_of(clock, spool), spool, clock)


def deliverer_of(clock: Clock, *spools: Path) -> Deliverer:
    locks = [DelivererLock(Records(str(spool))) for spool in spools]
    assert all(lock.acquire() for lock in locks)
    queue, heartbeat = Queue(locks), Heartbeat(locks)
    return Deliverer(queue, Sender(queue, heartbeat), heartbeat, clock.sleep, lambda: None)


def users(eventbridge: EventBridge) -> list[str]:
    return [detail["username"] for detail in eventbridge.details()]


def pauses_without_jitter(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have pauses take as long as they may; a list that gets their seconds as they come."""
    taken = []

    def longest(low: float, high: float) -> float:
        taken.append(high)
        return high

    monkeypatch.setattr(deliver, "Due", lambda now: Due(now, longest))
    return taken


def test_events_get_through_while_nine_calls_in_ten_are_throttled(
    in_process: InProcess, eventbridge: EventBridge
) -> None:
    """The bound: ten calls to a batch of ten, as each tenth call succeeds; and as there is a pause
    before each repetition, of 0.5, 1, 2, … s on average, some 120 s for a batch."""
    eventbridge.set(fault="throttle", fault_share=(9, 10))
    for number in range(THROTTLED):
        in_process.put(number)
    assert in_process.deliverer.run(linger=0)
    assert users(eventbridge) == [f"u{number:04d}" for number in range(THROTTLED)]
    assert [call.entry_count for call in eventbridge.calls()] == [10] * THROTTLED
    assert len(in_process.clock.slept) > 0.8 * THROTTLED  # a random pause may be too short to count
    assert sum(in_process.clock.slept) > 6 * THROTTLED
    assert in_process.left() == []


def test_steady_logins_become_batches_and_the_first_ones_do_not_wait_for_others(
    in_process: InProcess, eventbridge: EventBridge
) -> None:
    """Twenty a second for five seconds: four calls at once, then five a second."""
    clock = in_process.clock
    in_process.put(0)
    clock.at = [(number / 20, lambda n=number: in_process.put(n)) for number in range(1, 100)]  # type: ignore[misc]
    in_process.deliverer.sleep = lambda seconds: clock.sleep(min(seconds, 0.02))
    assert in_process.deliverer.run(linger=1)
    assert users(eventbridge) == [f"u{number:04d}" for number in range(100)]
    counts = [call.entry_count for call in eventbridge.calls()]
    assert counts[:3] == [1, 1, 1]
    assert len(counts) <= 35


def keep_busy(in_process: InProcess, turns: int, records: int, seconds: float) -> None:
    """Have so many records be accepted during each attempt, which takes so long; then one more."""
    sender, numbers = in_process.deliverer.sender, iter(range(turns * records + 1))
    send = sender.send

    def send_slowly(names: list[str]) -> Outcome:
        for number in itertools.islice(numbers, records):
            in_process.put(number)
        in_process.clock.passed += seconds
        return send(names)

    in_process.put(9999)
    sender.send = send_slowly  # type: ignore[method-assign]


def test_a_flood_of_full_calls_is_not_made_up_for_by_a_pause(
    in_process: InProcess, eventbridge: EventBridge
) -> None:
    keep_busy(in_process, turns=60, records=10, seconds=0.01)
    assert in_process.deliverer.run(linger=0)
    assert len(users(eventbridge)) == 602
    assert all(seconds <= CALL_INTERVAL_SECONDS for seconds in in_process.clock.slept)


def test_a_flood_does_not_put_off_the_look_at_the_sessions(in_process: InProcess) -> None:
    looks: list[float] = []
    in_process.deliverer.look = lambda: looks.append(in_process.clock.passed)
    keep_busy(in_process, turns=100, records=1, seconds=5.0)
    assert in_process.deliverer.run(linger=0)
    assert all(after - before < 3 * LOOK_SECONDS for before, after in zip([0.0, *looks], looks))
    assert len(looks) > 3


def test_an_error_is_logged_once_and_how_many_had_waited_for_it(
    in_process: InProcess, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("tattle.delivery.reporter.log", told.append)
    eventbridge.set(fault="throttle", fault_times=3)
    for number in range(12):
        in_process.put(number)
    assert in_process.deliverer.run(linger=0)
    assert len(told) == 2
    assert told[0].startswith("events wait in the spool: ")
    assert told[1] == "delivering again: 12 events that had waited are sent"
    # Another number is no other error; and who waits for a minute has waited without any.
    reporter = Reporter(in_process.deliverer.queue)
    for message in ("1 s left", "2 s left", "none left"):
        outcome = Outcome(refusal=TattleError(message, os.EX_NOPERM))
        reporter.note_attempt(outcome, gave_up=False, tried=0.0, oldest=0.0)
    reporter.nothing_waits()
    for seconds in (61.0, 59.0):
        reporter.note_attempt(Outcome(delivered=1), gave_up=False, tried=seconds, oldest=0.0)
        reporter.nothing_waits()
    assert [line.split(": ")[1] for line in told[2:]] == [
        *("1 s left", "none left", "0 events that had waited are sent"),
        "1 events that had waited are sent",
    ]


def test_a_lost_answer_holds_up_no_others_and_is_not_resent_for_what_they_get(
    in_process: InProcess, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call's answer is lost; others are refused, and then accepted, long before the
    minute is over after which it is sent again."""
    pauses_without_jitter(monkeypatch)
    in_process.put(0)
    eventbridge.set(fault="reset-after", fault_times=1)
    eventbridge.set(rejections=[Rejection("u0001", times=2)])
    in_process.clock.at = [(0.5, lambda: None)]

    began = in_process.clock.monotonic()
    arrivals: list[tuple[str, float]] = []
    in_process.put(1)
    in_process.put(2)
    monkeypatch.setattr(batches, "BATCH_SIZE", 1)
    original = in_process.deliverer.queue.confirm

    def confirm(sessions: dict[str, Session]) -> None:
        arrivals.extend((name, in_process.clock.monotonic() - began) for name in sessions)
        original(sessions)

    monkeypatch.setattr(in_process.deliverer.queue, "confirm", confirm)
    assert in_process.deliverer.run(linger=0)
    order = [(int(name[10:11]), round(seconds)) for name, seconds in arrivals]
    assert [number for number, _ in order] == [2, 1, 0]
    assert order[1][1] < 40
    assert order[2][1] >= 59
    assert users(eventbridge).count("u0000") == 2


def test_an_event_accepted_in_the_last_try_is_not_given_up_with_the_others(
    in_process: InProcess, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hook relied on a deliverer that was there."""
    pauses_without_jitter(monkeypatch)
    in_process.put(1)
    eventbridge.set(fault="throttle")
    slept, send = in_process.clock.slept, in_process.deliverer.sender.send

    def send_for_ten_seconds(names: list[str]) -> Outcome:
        last = sum(slept) + 10 > GIVE_UP_AFTER
        slept.append(5)
        if last:
            moment = int(in_process.clock.time() * 1e9)
            (in_process.spool / f"{moment:020d}-7").write_text("")
        slept.append(5)
        return send(names)

    monkeypatch.setattr(in_process.deliverer.sender, "send", send_for_ten_seconds)
    assert not in_process.deliverer.run(linger=0)
    assert GIVE_UP_AFTER - 60 < sum(slept) < GIVE_UP_AFTER + 60
    assert len(in_process.left()) == 2
    slept.append(5)
    assert not is_given_up(in_process.records())


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
    accepted: float, noted: float, woken: bool, given_up: bool, tmp_path: Path
) -> None:
    records, now = Records(str(tmp_path / "spool")), time.time()
    (tmp_path / "spool" / f"{int((now + accepted) * 1e9):020d}-1").touch()
    last_error.write(records, TattleError("EventBridge is away", 69), True, now + noted)
    if woken:
        (tmp_path / "spool" / WAKE).touch()
    assert is_given_up(records) == given_up


def test_where_delivered_events_cannot_be_removed_those_of_the_other_spool_are_sent(
    in_process: InProcess, eventbridge: EventBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/var has become read-only in the middle of a call, and new events are accepted in /run."""
    other = tmp_path / "other"
    other.mkdir(0o700)
    lock = DelivererLock(Records(str(other)))
    assert lock.acquire()
    queue = in_process.deliverer.queue
    queue.locks.append(lock)
    queue.spools.append(lock.records)
    put_away = ledger.put_away

    def put_away_later(
        spools: Sequence[Records], spool: Records, sent: Mapping[str, Session]
    ) -> None:
        if len(eventbridge.calls()) < 2 and spool is in_process.records():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        put_away(spools, spool, sent)

    def accept_in_the_other() -> None:
        in_process.put(2)
        (path,) = (p for p in in_process.spool.iterdir() if p.read_text().find("u0002") > 0)
        path.rename(other / path.name)

    told: list[str] = []
    monkeypatch.setattr("tattle.delivery.reporter.log", told.append)
    monkeypatch.setattr(ledger, "put_away", put_away_later)
    in_process.put(1)
    in_process.clock.at = [(0, accept_in_the_other)]
    assert in_process.deliverer.run(linger=0)
    assert users(eventbridge) == ["u0001", "u0002"]
    assert in_process.left() == []
    assert f"can't remove what is delivered from {in_process.spool}: Read-only" in told[0]


def test_entries_refused_one_by_one_are_not_tried_without_a_pause(
    in_process: InProcess, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is refused as a whole is split up; what then fails waits like everything else."""
    pauses = pauses_without_jitter(monkeypatch)
    for number in range(3):
        in_process.put(number)
    # A round: the whole call, then three single ones. Three rounds fail, the fourth succeeds.
    eventbridge.set(
        fault="validation", fault_share=(1, 4), rejections=[Rejection("opened", times=9)]
    )
    assert in_process.deliverer.run(linger=0)
    assert users(eventbridge) == ["u0000", "u0001", "u0002"]
    assert len(eventbridge.calls()) == 16
    assert pauses == [1, 2, 4]


@pytest.mark.parametrize(
    ("name", "age", "belongs"),
    [("README", 0, False), (f"{TEMPORARY}1", 50, True), (f"{TEMPORARY}1", 70, False)]
    + [(name, 70, True) for name in (WAKE, DELIVERER, OPEN, REJECTED, ELSEWHERE)],
)
def test_what_is_no_record_nor_tattles_own_is_put_out_of_the_way(
    name: str, age: float, belongs: bool, tmp_path: Path
) -> None:
    records, file = Records(str(tmp_path / "spool")), tmp_path / "spool" / name
    file.touch()
    os.utime(file, (0, time.time() - age))
    assert records.names() == []
    assert file.exists() == belongs
    if not belongs:
        assert os.listdir(tmp_path / "spool" / REJECTED) == [name]


def test_a_record_that_cannot_be_read_just_now_is_kept(
    in_process: InProcess, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, say: what was accepted must not end in rejected/ for that."""
    in_process.put(1)
    in_process.put(2)
    records = in_process.records()
    read = records.read
    faults = [OSError(errno.ENFILE, "Too many open files in system"), OSError(errno.EIO, "I/O")]

    def faulty(name: str) -> bytes:
        if faults:
            raise faults.pop()
        return read(name)

    monkeypatch.setattr(records, "read", faulty)
    assert in_process.deliverer.run(linger=0)
    assert sorted(users(eventbridge)) == ["u0001", "u0002"]
    assert in_process.left() == []


def test_what_was_accepted_on_another_instance_is_never_sent_as_this_ones(
    in_process: InProcess, eventbridge: EventBridge
) -> None:
    in_process.put(1, TATTLE_INSTANCE="i-0builder")
    in_process.put(2, TATTLE_INSTANCE="i-abc123abc123")
    in_process.put(3)  # tattle 1.1 did not say
    assert in_process.deliverer.run(linger=0)
    assert users(eventbridge) == ["u0002", "u0003"]
    (kept,) = (in_process.spool / ELSEWHERE).iterdir()
    assert "PAM_USER=u0001" in kept.read_text()


class TestALockThatIsPulledAway:
    def test_nothing_more_is_sent_once_the_directory_is_another(
        self, in_process: InProcess, eventbridge: EventBridge
    ) -> None:
        in_process.put(1)
        in_process.spool.rename(in_process.spool.with_name("moved"))
        in_process.spool.mkdir(0o700)
        assert not in_process.deliverer.run(linger=0)
        assert eventbridge.calls() == []

    def test_the_file_beside_it_is_made_anew(
        self, in_process: InProcess, eventbridge: EventBridge
    ) -> None:
        in_process.put(1)
        (in_process.spool / ".deliverer").unlink()
        assert in_process.deliverer.run(linger=0)
        assert users(eventbridge) == ["u0001"]
        assert (in_process.spool / ".deliverer").exists()
