"""The records that wait in the spools whose locks this process holds, oldest first."""

from __future__ import annotations

import contextlib
import os

from tattle.delivery import ledger
from tattle.delivery.lock import DelivererLock
from tattle.delivery.records import ELSEWHERE, LAST_ERROR, WAKE, Records
from tattle.errors import TattleError, log
from tattle.login.pam import Session
from tattle.login.spool import EMERGENCY_PATH, PATH


class Queue:
    """Knows in which spool a record lies, and which ones EventBridge has."""

    def __init__(self, locks: list[DelivererLock]) -> None:
        self.locks = locks
        self.spools = [lock.records for lock in locks]
        self._others: list[Records] = []
        self._spool_of: dict[str, Records] = {}
        self._confirmed: dict[str, Session] = {}  # EventBridge has them, and they are still there

    def names(self) -> list[str]:
        """Return the sorted names of the records to deliver, oldest first. Raises OSError."""
        found = {name: spool for spool in self.spools for name in spool.names()}
        self._spool_of = {**{name: self._spool_of[name] for name in self._confirmed}, **found}
        return sorted(found)

    def spool_of(self, name: str) -> Records:
        """Return the spool that a record lies in."""
        return self._spool_of[name]

    def move_if_from_elsewhere(self, name: str, session: Session, instance_id: str | None) -> bool:
        """Move a record to `elsewhere/` if another instance accepted it; tell whether one did.

        It came with a disk image: under this machine's ARN it would be a lie. A record of tattle
        1.1 does not say, and is this machine's.
        """
        accepted_on = session.context.get("TATTLE_INSTANCE")
        if not accepted_on or not instance_id or accepted_on == instance_id:
            return False
        spool = self._spool_of[name]
        if spool.move(name, ELSEWHERE):
            log(f"accepted on {accepted_on}, not here: {spool.path}/{ELSEWHERE}/{name}")
        return True

    def put_away_confirmed(self, names: list[str]) -> tuple[list[str], TattleError | None]:
        """Put away what EventBridge has; return which of these can then be sent, and the error.

        Nothing is sent from a spool that nothing can be removed from: it would be sent again.
        """
        error = self._put_away()
        unwritable = {self._spool_of[name] for name in self._confirmed}
        return [name for name in names if self._spool_of[name] not in unwritable], error

    def confirm(self, sessions: dict[str, Session]) -> None:
        """Put away what EventBridge has: records by name, and what they tell of.

        Raises TattleError; they are not sent a second time then.
        """
        self._confirmed.update(sessions)
        error = self._put_away()
        if error:
            raise error

    def _put_away(self) -> TattleError | None:
        failed = None
        for spool in {self._spool_of[name] for name in self._confirmed}:
            names = sorted(name for name in self._confirmed if self._spool_of[name] is spool)
            sent = {name: self._confirmed[name] for name in names}
            try:
                ledger.put_away(self.ledgers(), spool, sent)
                for name in sent:
                    del self._confirmed[name]
            except OSError as error:
                message = f"can't remove what is delivered from {spool.path}: {error.strerror}"
                failed = TattleError(message, os.EX_IOERR, "sudo tattle check")
        return failed

    def ledgers(self) -> list[Records]:
        """Return all spools that there are, also one that another process delivers from."""
        known = {spool.path for spool in (*self.spools, *self._others)}
        if known & {PATH, EMERGENCY_PATH}:
            for path in {PATH, EMERGENCY_PATH} - known:
                with contextlib.suppress(OSError, TattleError):  # check says so
                    if os.path.isdir(path):
                        self._others.append(Records(path))
        return [*self.spools, *self._others]

    def keep_locks(self) -> bool:
        """See to it that the locks count; False if this process no longer is the deliverer."""
        return all(lock.keep() for lock in self.locks)

    def take_wake_request(self) -> bool:
        """Remove a flush's wish to try now; tell whether there was one. It then waits for an error
        that is newer: the last one is removed, too."""
        woken = [spool for spool in self.spools if spool.holds(WAKE)]
        for spool in woken:
            spool.remove([LAST_ERROR, WAKE])
        return bool(woken)
