"""From records to calls, and to what became of each.

No record leaves the spool that EventBridge has not confirmed; what can never be sent is rejected.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tattle.delivery.due import Outcome
from tattle.delivery.queue import Queue
from tattle.delivery.watchdog import Heartbeat
from tattle.errors import TattleError, Unanswered, defect
from tattle.event.config import load
from tattle.event.pamd import trusts_sshd
from tattle.login.pam import Session, is_whole, parse
from tattle.unpack import unpack

if TYPE_CHECKING:
    from tattle.aws.eventbridge import Entry, Publisher

TIMEOUT_SECONDS = 60.0  # for a connection, and for an answer: botocore's own default
CALL_SECONDS = 120.0  # for a whole call, however slowly an answer trickles in
BATCH_SIZE = 10  # entries in a PutEvents call
# A file that is no record, whatever its name: a symbolic link, a directory, a socket, a device
NOT_A_RECORD = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)


class Prepared(NamedTuple):
    """A record's session, and the entry that EventBridge gets for it."""

    session: Session
    entry: Entry


Entries = dict[str, Prepared]  # by record


class Batch(NamedTuple):
    """Entries for one call, all for one event bus."""

    bus: str
    entries: Entries


class Sender:
    """Sends records, once each time it is asked. Raises no TattleError."""

    def __init__(self, queue: Queue, heartbeat: Heartbeat) -> None:
        self.queue = queue
        self.heartbeat = heartbeat
        self.publisher: Publisher | None = None

    def send(self, names: list[str]) -> Outcome:
        """Send these records once, oldest first, and return what became of them.

        Stops where EventBridge can't be had; goes on where it refused single entries, or one bus.
        """
        outcome = Outcome()
        try:
            for part in self._send(names):
                outcome = outcome.plus(part)
        except Unanswered:
            pass  # the outcome says which
        except TattleError as error:
            outcome = outcome.plus(Outcome(refusal=error))
        except Exception as error:  # one that nobody expected must not end the deliverer
            outcome = outcome.plus(Outcome(refusal=defect(error)))
        if outcome.error and outcome.error.status != os.EX_TEMPFAIL:
            self.publisher = None  # files, role or network: ask again when trying again
        return outcome

    def _send(self, names: list[str]) -> Iterator[Outcome]:
        """Send these records; yield what became of one part after the other.

        Raises TattleError if that keeps back all that is left.
        """
        names, unremovable = self.queue.put_away_confirmed(names)
        yield Outcome(refusal=unremovable)
        if not names:
            return
        with self.heartbeat.at_most(CALL_SECONDS, too_slow()):
            publisher = self._current_publisher()
            publisher.prepared_client()
        refusing: set[str] = set()
        for part in self.batches(names, publisher):
            if isinstance(part, Outcome):
                yield part
            elif part.bus not in refusing:
                try:
                    yield from self._publish(part.entries, publisher)
                except TattleError as error:
                    if error.status not in (os.EX_NOPERM, os.EX_CONFIG):
                        raise
                    if not refusing:
                        yield Outcome(refusal=error)
                    refusing.add(part.bus)

    def _current_publisher(self) -> Publisher:
        """Return the publisher for the configuration as it is now. Raises TattleError."""
        config = load()
        if self.publisher is None or config != self.publisher.config:
            unpack()
            from tattle.aws.eventbridge import Publisher

            self.publisher = Publisher(config, TIMEOUT_SECONDS)
        return self.publisher

    def batches(self, names: list[str], publisher: Publisher) -> Iterator[Batch | Outcome]:
        """Yield the entries of records, as many as one call takes; an outcome for what has none.

        Rejects what is no event.
        """
        from tattle.aws.eventbridge import SIZE_LIMIT, entry_size

        filling: dict[str, Entries] = {}
        sizes: dict[str, int] = {}
        for name in names:
            with self.heartbeat.at_most(CALL_SECONDS, too_slow()):  # IMDS may be asked for a tag
                prepared = self._prepare(name, publisher)
            if isinstance(prepared, Outcome):
                yield prepared
                continue
            bus, size = prepared.entry.get("EventBusName", ""), entry_size(prepared.entry)
            entries = filling.get(bus, {})
            if len(entries) == BATCH_SIZE or sizes.get(bus, 0) + size >= SIZE_LIMIT:
                yield Batch(bus, entries)
                entries, sizes[bus] = {}, 0
            filling[bus] = {**entries, name: prepared}
            sizes[bus] = sizes.get(bus, 0) + size
        yield from itertools.starmap(Batch, filling.items())

    def _prepare(self, name: str, publisher: Publisher) -> Prepared | Outcome:
        """Return a record's session and entry; an outcome if that is no event, can't be read or
        must not be sent from here."""
        spool = self.queue.spool_of(name)
        try:
            session = session_of(spool.read(name))
            instance_id = publisher.document.get("instanceId")  # None where `resource` is set
            if self.queue.move_if_from_elsewhere(name, session, instance_id):
                return Outcome()
            return Prepared(session, publisher.entry(session, trusts_sshd))
        except TattleError as error:
            if error.status not in (os.EX_DATAERR, os.EX_USAGE):
                raise
            spool.reject(name, str(error))
        except OSError as error:
            if error.errno in NOT_A_RECORD:
                spool.reject(name, str(error))
            elif spool.holds(name):  # else somebody removed it
                message = f"can't read {spool.path}/{name}: {error.strerror}"
                return Outcome(refusal=TattleError(message, os.EX_TEMPFAIL, "sudo tattle check"))
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            spool.reject(name, f"{type(error).__name__}: {error}")  # others must not wait
        return Outcome()

    def _publish(self, entries: Entries, publisher: Publisher) -> Iterator[Outcome]:
        """Send one batch; remove what was accepted, reject what never will be; yield the outcome.

        Raises TattleError if the call as a whole did not succeed.
        """
        if not self.queue.keep_locks():
            message = "the deliverer's lock file was removed or replaced"
            raise TattleError(message, os.EX_TEMPFAIL, "nothing: another deliverer takes over")
        try:
            too_late = Unanswered(f"no whole answer within {CALL_SECONDS:.0f} s")
            with self.heartbeat.at_most(CALL_SECONDS, too_late):
                results = publisher.publish([prepared.entry for prepared in entries.values()])
        except Unanswered as error:
            yield Outcome(unanswered=tuple(entries), unanswered_error=error)
            raise
        except TattleError as error:
            if error.status != os.EX_DATAERR:
                raise
            if len(entries) == 1:
                (name,) = entries
                self.queue.spool_of(name).reject(name, str(error))
            else:
                for name, prepared in entries.items():  # one of them made the call fail
                    yield from self._publish({name: prepared}, publisher)
            return
        refusals = {name: result.error for name, result in zip(entries, results)}
        accepted = {name: entries[name].session for name in entries if not refusals[name]}
        yield Outcome(delivered=len(accepted))
        self.queue.confirm(accepted)
        for name, refusal in refusals.items():
            if isinstance(refusal, Unanswered):
                yield Outcome(unanswered=(name,), unanswered_error=refusal)
            elif refusal and refusal.status == os.EX_DATAERR:
                self.queue.spool_of(name).reject(name, str(refusal))
            elif refusal:
                yield Outcome(refusal=refusal)


def session_of(record: bytes) -> Session:
    """Return the session that a record tells of. Raises TattleError if something is missing."""
    if is_whole(record):
        session = parse(record)
        if re.fullmatch(r"[0-9]{1,19}", session.context["TATTLE_TIME"]):
            return session
    raise TattleError("an incomplete record", os.EX_DATAERR)


def too_slow() -> TattleError:
    """Return the error for an IMDS or STS whose answers never end."""
    message = f"no whole answer from IMDS, or for the role, within {CALL_SECONDS:.0f} s"
    return TattleError(message, os.EX_UNAVAILABLE, "sudo tattle check")
