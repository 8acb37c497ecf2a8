"""The records that wait in the spools whose locks this process holds, oldest first."""

from __future__ import annotations

import os

from tattle.delivery.lock import DelivererLock
from tattle.delivery.records import ELSEWHERE, LAST_ERROR, WAKE, Records
from tattle.errors import TattleError, log
from tattle.login.pam import Session


class Queue:
    """Knows in which spool a record lies, and which ones EventBridge has."""

    def __init__(self, locks: list[DelivererLock]) -> None:
        self.locks = locks
        self.spools = [lock.records for lock in locks]
        self.sessions: dict[str, Session] = {}  # what the records tell of, once they were read
        self._spool_of: dict[str, Records] = {}
        self._confirmed: set[str] = set()  # EventBridge has them, and they could not be removed

    def names(self) -> list[str]:
        """Return the sorted names of the records to deliver, oldest first. Raises OSError."""
        found = {name: spool for spool in self.spools for name in spool.names()}
        self._spool_of = {**{name: self._spool_of[name] for name in self._confirmed}, **found}
        self.sessions = {name: self.sessions[name] for name in self.sessions if name in found}
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Return a record. Raises OSError."""
        return self._spool_of[name].read(name)

    def holds(self, name: str) -> bool:
        """Tell whether a record is still there."""
        return self._spool_of[name].holds(name)

    def path(self, name: str) -> str:
        """Return a record's path."""
        return f"{self._spool_of[name].path}/{name}"

    def reject(self, name: str, reason: str) -> None:
        """Put what can never be sent out of the way."""
        self._spool_of[name].reject(name, reason)

    def is_from_elsewhere(self, name: str, session: Session, instance_id: str | None) -> bool:
        """Tell whether a record was accepted on another instance: it came with a disk image.

        It is put out of the way then: under this machine's ARN it would be a lie. A record of
        tattle 1.1 does not say, and is this machine's.
        """
        accepted_on = session.context.get("TATTLE_INSTANCE")
        if not accepted_on or not instance_id or accepted_on == instance_id:
            return False
        spool = self._spool_of[name]
        if spool.move(name, ELSEWHERE):
            log(f"accepted on {accepted_on}, not here: {spool.path}/{ELSEWHERE}/{name}")
        return True

    def removable(self, names: list[str]) -> tuple[list[str], TattleError | None]:
        """Remove what EventBridge has; return those that lie where that is possible, and the error.

        Nothing is sent that would then stay, and be sent again.
        """
        error = self._remove_confirmed()
        unwritable = {self._spool_of[name] for name in self._confirmed}
        left = [name for name in names if name not in self._confirmed]
        return [name for name in left if self._spool_of[name] not in unwritable], error

    def confirm(self, names: list[str]) -> None:
        """Remove what EventBridge has. Raises TattleError; it is not sent a second time then."""
        self._confirmed.update(names)
        error = self._remove_confirmed()
        if error:
            raise error

    def _remove_confirmed(self) -> TattleError | None:
        failed = None
        for spool in self.spools:
            names = sorted(name for name in self._confirmed if self._spool_of[name] is spool)
            try:
                spool.remove(names)
                self._confirmed.difference_update(names)
            except OSError as error:
                message = f"can't remove what is delivered from {spool.path}: {error.strerror}"
                failed = TattleError(message, os.EX_IOERR, "sudo tattle check")
        return failed

    def is_ours(self) -> bool:
        """Tell whether this process still is the deliverer of these spools."""
        return all(lock.is_held() for lock in self.locks)

    def is_woken(self) -> bool:
        """Tell whether a flush waits; if so, the next error that is kept is its."""
        woken = [spool for spool in self.spools if spool.holds(WAKE)]
        for spool in woken:
            spool.remove([LAST_ERROR, WAKE])
        return bool(woken)
