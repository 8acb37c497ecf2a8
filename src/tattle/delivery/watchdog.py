"""Signs of life: the deliverer shows them; who is next takes over where there are none.

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
from tattle.login.spool import DELIVERER, Spool

BEAT_SECONDS = 1.0  # between two signs of life
# More than a name look-up holds up the beat: three servers, twice, 2 s each; resolv.conf(5)
DEAD_AFTER = 60.0
POLL_SECONDS = 0.1  # between two looks of who is next
END_SECONDS = 5.0  # for a killed process to be gone


class TimeUp(BaseException):
    """A call took too long. Not an Exception: libraries catch those, and go on."""


class Heartbeat:
    """Shows signs of life in spools, and ends calls that take too long."""

    def __init__(self, spools: list[Spool]) -> None:
        self.spools = spools
        self._deadline = math.inf

    def __enter__(self) -> Heartbeat:
        self.beat()
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, BEAT_SECONDS, BEAT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

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
        except TimeUp:
            raise error from None

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        self.beat()
        if time.monotonic() > self._deadline:
            raise TimeUp  # with each beat, until at_most() has it: a destructor may swallow one


def take_lock(spool: Spool, own_sign: int | None = None) -> None:
    """Wait until the spool's deliverer is gone, or end it if it shows no sign of life.

    own_sign: the descriptor of a file whose time of modification is our own sign of life.
    """
    sign, since, beaten = 0, time.monotonic(), 0.0
    while not spool.lock():
        now = time.monotonic()
        if own_sign is not None and now - beaten > BEAT_SECONDS:
            os.utime(own_sign)
            beaten = now
        latest = os.stat(DELIVERER, dir_fd=spool.fd, follow_symlinks=False).st_mtime_ns
        if latest != sign:
            sign, since = latest, now
        elif now - since > DEAD_AFTER:
            # A process that is not ours is left alone, and told of only once.
            since = now if end_holders(spool) else math.inf
        time.sleep(POLL_SECONDS)


def end_holders(spool: Spool) -> bool:
    """End who holds the spool's lock and log it; False if that is no deliverer of ours."""
    ended = True
    for pid in holders(spool):
        with contextlib.suppress(OSError):  # it has ended
            process = os.pidfd_open(pid)
            try:
                # With the process held by its descriptor, the id can't become another's.
                if pid in holders(spool):
                    ended = _end(pid, process, spool) and ended
            finally:
                os.close(process)
    return ended


def holders(spool: Spool) -> list[int]:
    """Return the ids of the processes through which the spool is locked: proc(5), fdinfo."""
    locked = os.stat(DELIVERER, dir_fd=spool.fd, follow_symlinks=False)
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # it has ended
        for fd in descriptors:
            with contextlib.suppress(OSError):  # closed, or not ours to look at
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                info = Path(f"/proc/{pid}/fdinfo/{fd}")
                if os.path.samestat(status, locked) and b"FLOCK" in info.read_bytes():
                    found.append(int(pid))
    return found


def _end(pid: int, process: int, spool: Spool) -> bool:
    """End the process if it is a deliverer of this spool; tell whether it is one."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read().split(b"\0")
    if not {b"deliver", spool.path.encode()} <= {*command}:
        log(f"process {pid}, which is not tattle, holds the lock of {spool.path}: events wait")
        return False
    log(f"no sign of life from process {pid} for {DEAD_AFTER:.0f} s: ending it and taking over")
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [], END_SECONDS)
    return True
