"""Heartbeats: the deliverer and the standby show them; where there is none, another takes over.

A deliverer may be stopped, frozen or stuck in a system call, and would then hold the spool's lock
for ever. It beats by a timer's signal: a process that can't run Python code can't beat either.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tattle.delivery.lock import DelivererLock, FileLock, Holder, holder, is_of_1_0
from tattle.delivery.records import DELIVERER, Records
from tattle.delivery.wake import Alarm
from tattle.errors import TattleError, log
from tattle.login.process import read
from tattle.login.spool import EMERGENCY_PATH, PATH, STANDBY

BEAT_SECONDS = 1.0  # between two heartbeats
STANDBY_BEAT_SECONDS = 0.5  # with each of which it has on disk what was accepted
# Longer than the longest name look-up, during which there is no heartbeat: 3 servers, 2 tries, 2 s
# each; resolv.conf(5)
DEAD_AFTER = {DELIVERER: 60.0, STANDBY: 5.0}
# Stop the heartbeat if the loop is idle for this long outside a call. A turn may have to look
# through a large spool on a slow disk.
IDLE_SECONDS = 30.0
POLL_SECONDS = 0.1  # between two looks at a standby, or at a deliverer of tattle 1.1
SPOOLS = {PATH.encode(), EMERGENCY_PATH.encode()}
END_SECONDS = 5.0  # for a killed process to be gone


class TimeUp(BaseException):
    """A call took too long. Not an Exception: libraries catch those, and go on."""


class Heartbeat:
    """Shows heartbeats beside locks, and ends calls that take too long."""

    def __init__(self, locks: list[DelivererLock]) -> None:
        self.locks = locks
        self._deadline = math.inf
        self._progressed = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._beat()
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, BEAT_SECONDS, BEAT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def note_progress(self) -> None:
        """Note that the main loop goes on: a process that only beats is not alive."""
        self._progressed = time.monotonic()

    @contextlib.contextmanager
    def at_most(self, seconds: float, error: TattleError) -> Iterator[None]:
        """Raise the error if what runs here takes longer.

        A connection's own time-outs count from byte to byte, and so may never come.
        """
        try:
            try:
                self._deadline = time.monotonic() + seconds
                yield
            finally:
                self._deadline = math.inf
                self.note_progress()
        except TimeUp:
            self._deadline = math.inf  # if it came within the finally clause
            raise error from None

    def sleep(self, alarm: Alarm, seconds: float) -> None:
        """Sleep until the alarm, for so long at most: a loop that sleeps is not idle."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.note_progress()
            if alarm.sleep(min(left, IDLE_SECONDS / 2)):
                break
        self.note_progress()

    def _beat(self) -> None:
        for lock in self.locks:
            lock.file.beat()

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._deadline < math.inf or now - self._progressed < IDLE_SECONDS:
            self._beat()
        if now > self._deadline:
            raise TimeUp  # with each beat, until at_most() has it: a destructor may swallow one


def become_standby(records: Records) -> FileLock | None:
    """Become the standby, and return its lock; None if nobody is needed.

    That is so where a standby lives, or where tattle 1.0 delivers: it takes up all that comes.
    """
    lock, watch = FileLock(records, STANDBY), Watch(records, STANDBY)
    while not is_of_1_0(records):
        if lock.acquire():
            lock.beat()
            return lock
        watch.poll()
        if watch.beats > 1:
            return None
        time.sleep(POLL_SECONDS)
    return None


def become_deliverer(
    records: Records, standby: FileLock, on_beat: Callable[[], None]
) -> DelivererLock | None:
    """Sleep until there is no deliverer, or end it if it shows no heartbeat; return the lock.

    Meanwhile show our own, and call on_beat with each. None if the standby's lock was lost: there
    may be another one by now.
    """
    lock, watch = DelivererLock(records), Watch(records, DELIVERER)
    while standby.is_held():
        if sleep_until_unlocked(records, STANDBY_BEAT_SECONDS):
            if lock.acquire():
                return lock
            time.sleep(POLL_SECONDS)  # tattle 1.1 delivers, and locks `.deliverer` alone
        standby.beat()
        on_beat()
        watch.poll()
    return None


class Beat(Exception):  # noqa: N818
    """It is time for a standby's heartbeat."""


def sleep_until_unlocked(records: Records, seconds: float) -> bool:
    """Sleep until nobody has the directory locked, for so long at most; tell whether that is so.

    Then it is locked by us.
    """
    asleep = True

    def wake_up(_signal: int, _frame: FrameType | None) -> None:
        if asleep:
            raise Beat

    signal.signal(signal.SIGALRM, wake_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        fcntl.flock(records.fd, fcntl.LOCK_EX)
        asleep = False
    except Beat:
        asleep = False
        return False
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


class Watch:
    """Watches the heartbeat of who holds a lock, for as long as we want it."""

    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name = records, name
        self.beats = 0  # seen so far; the first may be old
        self._last = 0
        self._since = time.monotonic()

    def poll(self) -> None:
        """Look for a new heartbeat, and end the holder if there was none for too long."""
        try:
            last = os.stat(self.name, dir_fd=self.records.fd, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            last = 0  # somebody has removed it: its holder makes it anew
        now = time.monotonic()
        if last != self._last:
            self._last, self._since = last, now
            self.beats += 1
        elif now - self._since > DEAD_AFTER[self.name]:
            # A process that can't be ended is logged only once.
            self._since = now if end_holder(self.records, self.name) else math.inf


def end_holder(records: Records, name: str) -> bool:
    """End who holds that lock, and log it; False if that is no deliverer of ours."""
    stranger = _end(holder(records, name), DEAD_AFTER[name])
    if stranger:
        log(f"{stranger} holds the lock of {records.path}: events wait")
    return not stranger


def _end(found: Holder | None, seconds: float) -> str:
    """End a deliverer that was silent for so long; return who it is instead if it is none."""
    if found is None or not found.is_alive():
        return "a process that is not this tattle"
    pid = found.pid
    if found.is_in_another_container():
        return f"process {pid} of another container"
    with contextlib.suppress(OSError):  # it has ended
        process = os.pidfd_open(pid)
        try:
            if not found.is_alive():  # held by its descriptor, the id can't become another's
                return ""
            command = read(f"/proc/{pid}/cmdline").split(b"\0")
            if b"deliver" not in command or not SPOOLS & {*command}:  # it may hold both
                return f"process {pid}, which is not tattle,"
            log(f"no heartbeat from process {pid} for {seconds:.0f} s: ending it and taking over")
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], END_SECONDS)
        finally:
            os.close(process)
    return ""
