"""Empty the spool: one deliverer at a time, oldest first, in batches, until EventBridge has all.

Joins spool, pam and events. Nothing here forgets a record that EventBridge has not confirmed,
unless it is set aside in `rejected/`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from tattle import EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE, TattleError
from tattle.config import Config, load
from tattle.log import log
from tattle.records import Records, accepted_at
from tattle.session import Session, parse
from tattle.spool import Spool
from tattle.unpack import unpack

if TYPE_CHECKING:
    from tattle.events import Entry, Publisher

ATTEMPTS = 3  # calls, spaced by botocore's standard mode
TIMEOUT = 5.0  # seconds for a connection, and for an answer
FIRST_PAUSE = 1.0  # seconds: the upper end of the first jitter
LONGEST_PAUSE = 60.0  # seconds
PATIENCE = 15 * 60.0  # seconds without a success until the records wait for the next login or flush
LINGER = 5.0  # seconds to stay for the next event, so that a busy host loads botocore once
GLANCE = 0.01  # seconds between two looks while staying
GATHER = 0.04  # seconds between two calls that are not full, so that a burst becomes batches
LIFE = 15 * 60.0  # seconds after which a busy deliverer makes room for a fresh one
BATCH = 10  # entries in a PutEvents call
# A file that is no record, whatever its name: a symbolic link, a folder, a socket, a device
FOREIGN = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)
CHUNK = 10 * BATCH  # records between two words on the progress of a flush
BACKLOG = 60.0  # seconds of waiting after which a delivery is a recovery, worth a line in the log


class Waiting(Protocol):
    """Where records wait: the spool, or the memory of a process that can't write there."""

    def waiting(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def remove(self, names: list[str]) -> None: ...
    def reject(self, name: str, reason: str) -> None: ...


class Memory:
    """One record that could not be written to the spool."""

    def __init__(self, record: bytes) -> None:
        self.records = {f"{time.time_ns():020d}-{os.getpid()}": record}

    def waiting(self) -> list[str]:
        return list(self.records)

    def read(self, name: str) -> bytes:
        return self.records[name]

    def remove(self, names: list[str]) -> None:
        for name in names:
            del self.records[name]

    def reject(self, name: str, reason: str) -> None:
        log(f"an event is lost: {reason}: {self.records.pop(name)!r}")


def in_background(spool: Spool | None, record: bytes | None) -> int:
    """Deliver for a hook that has let its login go on. Return the exit status, for --wait."""
    if spool is None:
        return from_memory(record or b"")
    records = Records(spool)
    deliverer = Deliverer(records)
    while True:
        emptied = deliverer.run(LINGER)
        records.unlock()
        # What was accepted after our last look found the lock taken, and left it to us.
        if not emptied or not deliverer.waiting() or not spool.lock():
            return 0 if emptied else EX_TEMPFAIL


def from_memory(record: bytes) -> int:
    """Deliver the one record that is nowhere else. One process at a time: each needs 40 MB."""
    with contextlib.suppress(OSError):
        # Some file that is there and that nobody but root can open, and so hold the lock of.
        fcntl.flock(os.open("/etc/shadow", os.O_RDONLY), fcntl.LOCK_EX)
    if Deliverer(Memory(record)).run(linger=0):
        return 0
    log(f"an event is lost: {record!r}")
    return EX_TEMPFAIL


def backoff(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row: full jitter below what doubles."""
    longest = FIRST_PAUSE
    while True:
        yield uniform(0, longest)
        longest = min(2 * longest, LONGEST_PAUSE)


class Deliverer:
    """One run of delivery, by whoever holds the lock. Nothing in it raises TattleError."""

    def __init__(self, records: Waiting, sleep: Callable[[float], None] = time.sleep) -> None:
        self.records = records
        self.sleep = sleep
        self.publisher: Publisher | None = None
        self.config = Config()
        self.delivered = 0
        self.fault = ""
        self.unremoved: set[str] = set()  # records that EventBridge has
        self.stuck: set[str] = set()  # records that could not be set aside
        self.unread: TattleError | None = None
        self.called = 0.0  # time.monotonic() of the last call

    def run(self, linger: float) -> bool:
        """Deliver with retries, then stay for linger seconds. Tell whether nothing is left."""
        began = success = time.monotonic()
        pauses = backoff()
        while True:
            names = self.waiting()
            since_call = time.monotonic() - self.called
            if 0 < len(names) < BATCH and since_call < GATHER:
                self.sleep(GATHER - since_call)
                names = self.waiting()
            if names and time.time() - accepted_at(names[0]) > BACKLOG:
                self.fault = self.fault or "an earlier deliverer gave up"
            if not names:
                self.recovered()
                if time.monotonic() - began > LIFE or not self.more_within(linger):
                    return True
                continue
            before = self.delivered
            fault = self.deliver(names)
            if self.delivered > before:
                success, pauses = time.monotonic(), backoff()
            if fault:
                self.log_fault(fault)
                if time.monotonic() - success > PATIENCE:
                    return False
                self.sleep(next(pauses))

    def deliver(self, names: list[str]) -> TattleError | None:
        """Send these records once, oldest first; return the fault that kept some of them back.

        Stops where EventBridge can't be had; goes on where it refused single entries.
        """
        fault = self.unread = None
        try:
            self.remove_delivered()
            publisher = self.current_publisher()
            for batch in self.batches(names, publisher):
                fault = self.publish(batch, publisher) or fault
        except TattleError as error:
            if error.status != EX_TEMPFAIL:
                self.publisher = None  # files, role or network: ask again when trying again
            return error
        except Exception as error:  # a defect must not take the next event's deliverer with it
            self.publisher = None
            return TattleError(f"a defect: {type(error).__name__}: {error}", EX_SOFTWARE)
        return fault or self.unread

    def current_publisher(self) -> Publisher:
        """Return the publisher for the configuration as it is now. Raises TattleError."""
        unpack()
        from tattle.events import Publisher

        config = load()
        if self.publisher is None or config != self.config:
            self.publisher, self.config = Publisher(config, ATTEMPTS, TIMEOUT), config
        return self.publisher

    def batches(self, names: list[str], publisher: Publisher) -> Iterator[dict[str, Entry]]:
        """Yield entries by record, as many as one call takes. Set aside what is no event."""
        from tattle.events import SIZE_LIMIT, entry_size

        batch: dict[str, Entry] = {}
        size = 0
        for name in names:
            try:
                entry = publisher.entry(self.session(name), believed)
            except TattleError as error:
                if error.status not in (EX_DATAERR, EX_USAGE):
                    raise
                self.set_aside(name, str(error))
                continue
            except OSError as error:
                if error.errno in FOREIGN:
                    self.set_aside(name, str(error))
                elif name in self.records.waiting():  # else somebody removed it
                    self.unread = TattleError(f"can't read {name}: {error}", EX_TEMPFAIL)
                continue
            except (ValueError, LookupError, TypeError, ArithmeticError) as error:
                self.set_aside(name, f"{type(error).__name__}: {error}")  # it must not stop others
                continue
            if len(batch) == BATCH or size + entry_size(entry) >= SIZE_LIMIT:
                yield batch
                batch, size = {}, 0
            batch[name] = entry
            size += entry_size(entry)
        if batch:
            yield batch

    def session(self, name: str) -> Session:
        """Return the session that a record tells of. Raises OSError or TattleError."""
        record = self.records.read(name)
        session = parse(record)
        whole = record.endswith(b"\0") and "TATTLE_BOOT" in session.moment
        if not whole or not re.fullmatch(r"[0-9]{1,19}", session.moment["TATTLE_TIME"]):
            raise TattleError("a torn record", EX_DATAERR)
        return session

    def set_aside(self, name: str, reason: str) -> None:
        """Put what can never be sent out of the way; failing that, leave it alone from now on."""
        try:
            self.records.reject(name, reason)
        except OSError as error:
            self.stuck.add(name)
            log(f"can't set aside {name} ({reason}): {error}")

    def publish(self, batch: dict[str, Entry], publisher: Publisher) -> TattleError | None:
        """Send one batch; remove what was accepted, set aside what never will be."""
        self.called = time.monotonic()
        try:
            results = publisher.publish(list(batch.values()))
        except TattleError as error:
            if error.status != EX_DATAERR:
                raise
            if len(batch) == 1:
                self.set_aside(next(iter(batch)), str(error))
                return None
            faults = [self.publish({name: batch[name]}, publisher) for name in batch]
            return next(filter(None, faults), None)  # the one that spoiled the call is set aside
        fault = None
        accepted = [n for n, result in zip(batch, results) if not result.error]
        self.delivered += len(accepted)
        self.unremoved.update(accepted)
        self.remove_delivered()
        for name, (_, refusal) in zip(batch, results):
            if refusal and refusal.status == EX_DATAERR:
                self.set_aside(name, str(refusal))
            elif refusal:
                fault = refusal
        return fault

    def remove_delivered(self) -> None:
        """Remove what EventBridge has; what can't be removed is at least not sent a second time."""
        self.records.remove(sorted(self.unremoved))
        self.unremoved.clear()

    def more_within(self, seconds: float) -> bool:
        """Stay for so long; tell whether there is a record to deliver."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.sleep(GLANCE)
            if self.waiting():
                return True
        return False

    def waiting(self) -> list[str]:
        """Return the names of the records to deliver, oldest first."""
        return [name for name in self.records.waiting() if name not in self.stuck]

    def log_fault(self, error: TattleError) -> None:
        """Say what keeps events back: once, however often it is tried."""
        if str(error) != self.fault:
            log(f"events wait in the spool: {error}")
        self.fault = str(error)

    def recovered(self) -> None:
        """Say that nothing keeps events back any longer."""
        if self.fault:
            log(f"delivering again: {self.delivered} events that had waited are sent")
        self.fault = ""


def believed(session: Session) -> bool:
    """Tell whether to believe what sshd said of the connection: pamd.believed()."""
    from tattle import pamd  # rarely asked for

    return pamd.believed(session)


def flush(progress: Callable[[int, int], None]) -> tuple[int, int, TattleError | None]:
    """Send what waits, without pauses; return how many went, how many remain, and what stops them.

    progress is called with both numbers on the way. Raises TattleError if the spool is of no use.
    """
    load()  # what is wrong there keeps a deliverer waiting, too
    try:
        spool = Spool()
    except OSError as error:
        raise TattleError(f"can't use the spool: {error}", EX_UNAVAILABLE) from error
    records = Records(spool)
    deliverer, fault = Deliverer(records), None
    end = time.monotonic() + LONGEST_PAUSE + LINGER
    while not spool.lock():
        progress(0, len(records.waiting()))
        if time.monotonic() > end or not records.waiting():
            return 0, len(records.waiting()), TattleError("another tattle delivers", EX_TEMPFAIL)
        time.sleep(1)
    while True:
        names = deliverer.waiting()
        while names and not fault:
            fault = deliverer.deliver(names[:CHUNK])
            del names[:CHUNK]
            progress(deliverer.delivered, len(names))
        records.unlock()  # as in in_background()
        if fault or not deliverer.waiting() or not spool.lock():
            return deliverer.delivered, len(records.waiting()), fault
