"""The records in a spool, for who delivers them: list, read, remove, reject. No login waits.

What is no record moves to `rejected/`, and is never fatal.
"""

from __future__ import annotations

import contextlib
import os
import time

from tattle.errors import log
from tattle.login.spool import PATH, REJECTED, STANDBY, TEMPORARY, Spool, is_record

DELIVERER = ".deliverer"  # who delivers, and its heartbeat: lock.py
LAST_ERROR = ".fault"  # what keeps events back: last_error.py
WAKE = ".wake"  # somebody wants the deliverer to try again now
OWN_FILES = (DELIVERER, STANDBY, LAST_ERROR, f"{LAST_ERROR}.new", WAKE)
ELSEWHERE = "elsewhere"  # records that were accepted on another machine
OPEN = "open"  # sessions that are open: ledger.py
OWN = (REJECTED, ELSEWHERE, OPEN, *OWN_FILES)

LATE_SECONDS = 60.0  # that a record may wait without anything being wrong
STALE_SECONDS = 60  # after which a temporary file is what a killed hook left behind


def new_record(variables: dict[str, str], boot: str, *machine: bytes) -> bytes:
    """Return a record as a hook makes it: NUL-terminated NAME=value, the boot id last.

    By that pam.is_whole() knows that it has all its bytes. machine: process.machine().
    """
    facts = [f"{name}={value}".encode() for name, value in variables.items()]
    return b"\0".join([*facts, *machine, f"TATTLE_BOOT={boot}".encode()]) + b"\0"


class Records(Spool):
    """A spool whose records can be delivered."""

    def __init__(self, path: str = PATH) -> None:
        super().__init__(path)
        self.stuck: set[str] = set()  # what could not be rejected
        self._synced: set[str] = set()  # records that are on disk

    def names(self) -> list[str]:
        """Return the names of the records, oldest first; reject what is none."""
        records = []
        for name in os.listdir(self.fd):
            if is_record(name):
                records.append(name)
            elif name not in self.stuck and not self._belongs(name):
                self.reject(name, "no record of tattle's")
        return sorted(name for name in records if name not in self.stuck)

    def sync_new(self) -> None:
        """Have on disk what was accepted since the last time. Raises OSError."""
        records = {*filter(is_record, os.listdir(self.fd))}
        if records - self._synced:
            self.sync(sorted(records - self._synced))
        self._synced = records

    def remove(self, names: list[str]) -> None:
        """Remove files; durably, so that a power cut brings none back. Raises OSError."""
        for name in names:
            # Somebody may have removed it, or an earlier try that then failed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)
        if names:
            os.fsync(self.fd)

    def reject(self, name: str, reason: str) -> None:
        """Move what can never be sent to `rejected/`, for a person to look at, and log it.

        What can't be moved is left alone from now on.
        """
        try:
            if self.move(name, REJECTED):
                log(f"rejected: {self.path}/{REJECTED}/{name}: {reason}")
        except OSError as error:
            self.stuck.add(name)
            log(f"can't reject {self.path}/{name} ({reason}): {error}")

    def move(self, name: str, directory: str) -> bool:
        """Move a file to a directory of the spool's; False if it is gone. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700, dir_fd=self.fd)
        new = f"{directory}/{os.path.basename(name)}"
        try:
            os.rename(name, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return False  # somebody was quicker
        os.fsync(self.fd)
        return True

    def write(self, name: str, content: bytes, durable: bool) -> None:
        """Write a file, whole, in place of the one before. Raises OSError.

        durable: wait for the disk, so that a power cut leaves no name without the bytes.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(f"{name}.new", flags, 0o600, dir_fd=self.fd), "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file)
        os.rename(f"{name}.new", name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def _belongs(self, name: str) -> bool:
        if name in OWN:
            return True
        try:
            age = time.time() - os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return True  # accepted in the meantime
        return name.startswith(TEMPORARY) and age < STALE_SECONDS
