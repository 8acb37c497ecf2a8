"""Signs of life: the deliverer shows them; a standby takes over where there are none.

A deliverer may be stopped, frozen or stuck in a system call, and would then hold the spool's lock
for ever. It beats by a timer's signal: a process that can't run Python code can't beat either.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tattle.errors import TattleError, log
from tattle.login.spool import DELIVERER, EMERGENCY_PATH, PATH, STANDBY, Spool

BEAT_SECONDS = 1.0  # between two signs of life
# More than a name look-up holds up the beat: three servers, twice, 2 s each; resolv.conf(5)
DEAD_AFTER = {DELIVERER: 60.0, STANDBY: 5.0}
# Without a turn of the main loop, nor a call under way, until there is no beat either. A turn
# may have to look through a large spool on a slow disk.
TURN_SECONDS = 30.0
POLL_SECONDS = 0.1  # between two looks of a standby
SPOOLS = {PATH.encode(), EMERGENCY_PATH.encode()}
LOW_DESCRIPTORS = 64  # a deliverer closes what it inherited, so its locks are among these
END_SECONDS = 5.0  # for a killed process to be gone


class TimeUp(BaseException):
    """A call took too long. Not an Exception: libraries catch those, and go on."""


class Heartbeat:
    """Shows signs of life in spools, and ends calls that take too long."""

    def __init__(self, spools: list[Spool]) -> None:
        self.spools = spools
        self._deadline = math.inf
        self._turned = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self.beat()
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, BEAT_SECONDS, BEAT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def turn(self) -> None:
        """Note that the main loop goes on: a process that only beats is not alive."""
        self._turned = time.monotonic()

    def beat(self) -> None:
        """Show a sign of life."""
        for spool in self.spools:
            with contextlib.suppress(OSError):  # delivering says what is wrong
                os.utime(spool.lock_fd)

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
                self.turn()
        except TimeUp:
            self._deadline = math.inf  # if it came within the finally clause
            raise error from None

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._deadline < math.inf or now - self._turned < TURN_SECONDS:
            self.beat()
        if now > self._deadline:
            raise TimeUp  # with each beat, until at_most() has it: a destructor may swallow one


def become_standby(spool: Spool) -> bool:
    """Become the standby; False if there is one that shows signs of life."""
    watch = Watch(spool, STANDBY)
    while not watch.take_over():
        if watch.signs > 1:
            return False
        time.sleep(POLL_SECONDS)
    os.utime(spool.lock_fd)
    return True


def become_deliverer(spool: Spool) -> None:
    """Wait until the deliverer is gone, or end it if it shows no sign of life; show our own."""
    standby_fd = spool.lock_fd
    watch, beaten = Watch(spool, DELIVERER), time.monotonic()
    while not watch.take_over():
        if time.monotonic() - beaten > BEAT_SECONDS:
            os.utime(standby_fd)
            beaten = time.monotonic()
        time.sleep(POLL_SECONDS)
    os.close(standby_fd)


class Watch:
    """Watches who holds a lock, for as long as we want it."""

    def __init__(self, spool: Spool, name: str) -> None:
        self.spool, self.name = spool, name
        self.signs = 0  # of life, seen so far; the first may be old
        self._last_sign = 0
        self._since = time.monotonic()

    def take_over(self) -> bool:
        """Get the lock, if it is free or its holder has shown no sign of life for too long."""
        if self.spool.lock(self.name):
            return True
        sign = os.stat(self.name, dir_fd=self.spool.fd, follow_symlinks=False).st_mtime_ns
        now = time.monotonic()
        if sign != self._last_sign:
            self._last_sign, self._since = sign, now
            self.signs += 1
        elif now - self._since > DEAD_AFTER[self.name]:
            # A process that is not ours is left alone, and told of only once.
            self._since = now if end_holders(self.spool, self.name) else math.inf
        return False


def end_holders(spool: Spool, name: str) -> bool:
    """End who holds that lock and log it; False if that is no deliverer of ours."""
    ended = True
    for pid in holders(spool, name):
        with contextlib.suppress(OSError):  # it has ended
            process = os.pidfd_open(pid)
            try:
                # With the process held by its descriptor, the id can't become another's.
                if pid in holders(spool, name):
                    ended = _end(pid, process, spool, name) and ended
            finally:
                os.close(process)
    return ended


def holders(spool: Spool, name: str) -> list[int]:
    """Return the ids of the processes that hold that lock: proc_locks(5).

    The kernel's list has inodes, which are unique only with a device that some file systems hide;
    a link in /proc has the path, and asks no file system of a user's.
    """
    path = f"{os.path.realpath(spool.path)}/{name}"
    inode = os.stat(name, dir_fd=spool.fd, follow_symlinks=False).st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [
        int(words[4])
        for words in locks
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}") and has_open(words[4], path)
    ]


def has_open(pid: str, path: str) -> bool:
    """Tell whether a process has that path open, as a deliverer has it: with a low descriptor.

    A user's process may have a million, which took minutes.
    """
    for fd in range(LOW_DESCRIPTORS):
        with contextlib.suppress(OSError):  # closed, or the process has ended
            if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                return True
    return False


def _end(pid: int, process: int, spool: Spool, name: str) -> bool:
    """End the process if it is a deliverer; tell whether it is one."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read().split(b"\0")
    if b"deliver" not in command or not SPOOLS & {*command}:  # it may hold both
        log(f"process {pid}, which is not tattle, holds the lock of {spool.path}: events wait")
        return False
    seconds = DEAD_AFTER[name]
    log(f"no sign of life from process {pid} for {seconds:.0f} s: ending it and taking over")
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [], END_SECONDS)
    return True
