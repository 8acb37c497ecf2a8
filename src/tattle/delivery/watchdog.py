"""Signs of life: the deliverer shows them, and who gets none ends it and takes over.

A deliverer may be stopped, frozen or stuck in a call, and then holds the lock of the spool for
ever. It beats by a timer's signal: a process that can't run Python code can't beat either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
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


class Heartbeat:
    """Shows signs of life in spools, and ends calls that take too long."""

    def __init__(self, spools: list[Spool]) -> None:
        self.spools = spools
        self._deadline: float | None = None

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
    def at_most(self, seconds: float) -> Iterator[None]:
        """Raise TattleError in what runs here once the time is up: time-outs of a connection count
        from byte to byte."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        self.beat()
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._deadline = None
            raise TattleError(
                "no whole answer from IMDS or EventBridge in time",
                os.EX_UNAVAILABLE,
                "look for a proxy or an endpoint that answers very slowly: sudo tattle check",
            )


class Watch:
    """Watches the deliverer of a spool, to take over from it."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._sign = 0
        self._seen = time.monotonic()

    def take_over(self) -> bool:
        """Get the lock if it is free or its holder has shown no sign of life for long enough."""
        if self.spool.lock():
            return True
        try:
            sign = os.stat(DELIVERER, dir_fd=self.spool.fd, follow_symlinks=False).st_mtime_ns
        except OSError:
            sign = 0
        if sign != self._sign:
            self._sign, self._seen = sign, time.monotonic()
        if time.monotonic() - self._seen < DEAD_AFTER:
            return False
        self._seen = time.monotonic()
        for pid in holders(self.spool):
            end(pid, self.spool)
        return self.spool.lock()

    def wait(self) -> None:
        """Wait for the lock; show signs of life to those who rely on us to be next."""
        while not self.take_over():
            if stat.S_ISREG(os.fstat(0).st_mode):
                os.utime(0)
            time.sleep(POLL_SECONDS)


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


def end(pid: int, spool: Spool) -> None:
    """End a process that still holds the spool's lock, if it is tattle's, and log it."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return  # it has ended
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            ours = os.fsencode(sys.argv[0]) in file.read().split(b"\0")
        if pid not in holders(spool):
            return  # it let go, or the id is another process's by now
        if ours:
            log(f"no sign of life of process {pid} for {DEAD_AFTER:.0f} s: ending it, taking over")
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _wait(process)
        else:
            log(f"process {pid}, not tattle's, holds the lock of {spool.path}: events wait")
    except OSError:
        pass
    finally:
        os.close(process)


def _wait(process: int) -> None:
    """Wait until a process has ended, five seconds at most."""
    import select

    select.select([process], [], [], 5)
