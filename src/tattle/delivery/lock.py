"""Who delivers from a spool, and who stands by: locks that notice if their file is replaced.

A lock counts only while its name still is the file that is locked: whoever finds that it is not, no
longer holds it. Beside the lock stands who holds it, and when that last showed a heartbeat.

The deliverer's lock is on the spool's directory, which is what tattle 1.0 locks, and on
`.deliverer`, which is what 1.1 locks. So the versions exclude one another, whatever is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import NamedTuple

from tattle.delivery.records import DELIVERER, Records
from tattle.login.process import start_time


class Holder(NamedTuple):
    """A process that holds a lock: its id and start time (proc(5)), in which namespace of ids."""

    pid: int
    start: str
    namespace: str

    def is_alive(self) -> bool:
        """Tell whether it still runs, as far as that can be seen from here."""
        return self.is_in_another_container() or start_time(self.pid).decode() == self.start

    def is_in_another_container(self) -> bool:
        """Tell whether its id means nothing here: it runs in another container."""
        return self.namespace != pid_namespace()


def pid_namespace() -> str:
    """Return what names this process's namespace of process ids: pid_namespaces(7)."""
    return os.readlink("/proc/self/ns/pid")


def holder(records: Records, name: str) -> Holder | None:
    """Return who says beside a lock that it holds it; None if nobody does."""
    try:
        pid, start, namespace = records.read(name).decode().split()
        return Holder(int(pid), start, namespace)
    except (OSError, ValueError):
        return None  # nobody yet, or 1.1, which writes nothing


class FileLock:
    """A lock on a file of the spool's, with its holder in it: the standby's, and 1.1's."""

    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name = records, name
        self.fd = -1

    def acquire(self) -> bool:
        """Become the holder, unless somebody is. Raises OSError."""
        self.release()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        fd = os.open(self.name, flags, 0o600, dir_fd=self.records.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self.fd = fd
        if not self.is_held():
            self.release()
            return False
        os.ftruncate(fd, 0)
        pid = os.getpid()
        os.pwrite(fd, b"%d %s %s" % (pid, start_time(pid), pid_namespace().encode()), 0)
        return True

    def is_held(self) -> bool:
        """Tell whether the name still is the file that is locked."""
        return self.fd >= 0 and is_same(self.fd, self.name, self.records.fd)

    def beat(self) -> None:
        """Show a heartbeat."""
        with contextlib.suppress(OSError):  # delivering says what is wrong
            os.utime(self.fd)

    def release(self) -> None:
        """Give it up; nobody is named in it any longer."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, 0)
            os.close(self.fd)
        self.fd = -1


class DelivererLock:
    """The deliverer's lock on a spool."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.file = FileLock(records, DELIVERER)

    def acquire(self) -> bool:
        """Become the deliverer, unless somebody is. Raises OSError."""
        try:
            fcntl.flock(self.records.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if is_same(self.records.fd, self.records.path) and self.file.acquire():
            return True
        fcntl.flock(self.records.fd, fcntl.LOCK_UN)
        return False

    def keep(self) -> bool:
        """See to it that the lock counts; False if this process no longer is the deliverer.

        Where somebody has removed `.deliverer` it is made anew, unless 1.1 was quicker.
        """
        return is_same(self.records.fd, self.records.path) and (
            self.file.is_held() or self.file.acquire()
        )


def is_of_1_0(records: Records) -> bool:
    """Tell whether tattle 1.0 delivers: it locks the directory, and knows of no `.deliverer`."""
    return not records.holds(DELIVERER) and is_locked(records)


def is_of_1_1(records: Records) -> bool:
    """Tell whether tattle 1.1 delivers: it locks `.deliverer` alone."""
    return not is_locked(records) and records.holds(DELIVERER) and is_locked(records, DELIVERER)


def is_locked(records: Records, name: str = ".") -> bool:
    """Tell whether somebody has the directory locked, as the deliverer has, or a file in it."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=records.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_same(fd: int, name: str, directory: int | None = None) -> bool:
    """Tell whether a name is the file that a descriptor has open."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(status, os.fstat(fd))
