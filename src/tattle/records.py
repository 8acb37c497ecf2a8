"""What waits in the spool, as those see it who deliver it or look after it.

What is no record is set aside in `rejected/`, and never fatal.
"""

from __future__ import annotations

import fcntl
import os
import time

from tattle.log import log
from tattle.spool import PATH, TEMPORARY, Spool

REJECTED = "rejected"
STALE = 60  # seconds after which a temporary file is what a killed hook left behind


def is_record(name: str) -> bool:
    """Tell whether a file's name is that of a record: 20 digits of nanoseconds, a process id."""
    moment, _, process = name.partition("-")
    return len(moment) == 20 and moment.isdigit() and process.isdigit()


def accepted_at(name: str) -> float:
    """Return the seconds since the epoch at which a record was accepted."""
    return int(name[:20]) / 1e9


class Records:
    """The records of a spool."""

    def __init__(self, spool: Spool) -> None:
        self.fd = spool.fd
        self.stuck: set[str] = set()  # what is no record and could not be set aside

    def waiting(self) -> list[str]:
        """Return the names of the records, oldest first; set aside what is none."""
        records = []
        for name in os.listdir(self.fd):
            if is_record(name):
                records.append(name)
            elif name not in self.stuck and not self._belongs(name):
                try:
                    self.reject(name, "no record of tattle's")
                except OSError as error:
                    self.stuck.add(name)
                    log(f"can't set aside {PATH}/{name}: {error}")
        return sorted(records)

    def read(self, name: str) -> bytes:
        """Return a record. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(name, "rb", opener=lambda path, _: os.open(path, flags, dir_fd=self.fd)) as file:
            return file.read()

    def remove(self, names: list[str]) -> None:
        """Forget records that EventBridge has; durably, so that a power cut brings none back."""
        for name in names:
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass  # by somebody's hand, or by an earlier try that got no further
        if names:
            os.fsync(self.fd)

    def reject(self, name: str, reason: str) -> None:
        """Set aside what can never be sent, for a person to look at, and log it.

        Raises OSError if that can't be done.
        """
        try:
            os.mkdir(REJECTED, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        try:
            os.rename(name, f"{REJECTED}/{name}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return  # somebody was quicker
        os.fsync(self.fd)
        log(f"set aside {PATH}/{REJECTED}/{name}: {reason}")

    def unlock(self) -> None:
        """Let another be the deliverer."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _belongs(self, name: str) -> bool:
        if name == REJECTED:
            return True
        try:
            age = time.time() - os.lstat(name, dir_fd=self.fd).st_mtime
        except FileNotFoundError:
            return True  # accepted in the meantime
        return name.startswith(TEMPORARY) and age < STALE
