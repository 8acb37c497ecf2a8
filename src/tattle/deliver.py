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
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from tattle import EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE, TattleError, log
from tattle.config import Config, load
from tattle.hook import lift_limits
from tattle.pam import Session, parse
from tattle.spool import Spool, accepted_at
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
UNREADABLE = (OSError, ValueError, LookupError, TypeError)  # one such record must not stop others
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing about the record
CHUNK = 10 * BATCH  # records between two words on the progress of a flush
BACKLOG = 60.0  # seconds of waiting after which a delivery is a recovery, worth a line in the log


class Records(Protocol):
    """Where records wait: the spool, or the memory of a process that could not write there."""

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
    settle()
    if spool is None:
        return from_memory(record or b"")
    while True:
        emptied = Deliverer(spool).run(LINGER)
        spool.unlock()
        # What was accepted after our last look found the lock taken, and left it to us.
        if not emptied or not spool.waiting() or not spool.lock():
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


def settle() -> None:
    """Be a background process: no limits, signals and priority of the login's."""
    lift_limits()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.nice(10)
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"  # resolv.conf(5): a dead name server


class Deliverer:
    """One run of delivery, by whoever holds the lock. Nothing in it raises TattleError."""

    def __init__(self, records: Records, sleep: Callable[[float], None] = time.sleep) -> None:
        self.records = records
        self.sleep = sleep
        self.publisher: Publisher | None = None
        self.config = Config()
        self.delivered = 0
        self.fault = ""
        self.unremoved: set[str] = set()  # records that EventBridge has
        self.called = 0.0  # time.monotonic() of the last call

    def run(self, linger: float) -> bool:
        """Deliver with retries, then stay for linger seconds. Tell whether nothing is left."""
        began = success = time.monotonic()
        pause = FIRST_PAUSE
        while True:
            names = self.records.waiting()
            since_call = time.monotonic() - self.called
            if 0 < len(names) < BATCH and since_call < GATHER:
                self.sleep(GATHER - since_call)
                names = self.records.waiting()
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
                success, pause = time.monotonic(), FIRST_PAUSE
            if fault:
                self.log_fault(fault)
                if time.monotonic() - success > PATIENCE:
                    return False
                self.sleep(random.uniform(0, pause))
                pause = min(2 * pause, LONGEST_PAUSE)

    def deliver(self, names: list[str]) -> TattleError | None:
        """Send these records once, oldest first; return the fault that kept some of them back.

        Stops where EventBridge can't be had; goes on where it refused single entries.
        """
        fault = None
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
        return fault

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
            except FileNotFoundError:
                continue  # somebody removed it
            except TattleError as error:
                if error.status not in (EX_DATAERR, EX_USAGE):
                    raise
                self.records.reject(name, str(error))
                continue
            except UNREADABLE as error:
                if getattr(error, "errno", None) in EXHAUSTED:
                    raise
                self.records.reject(name, f"{type(error).__name__}: {error}")
                continue
            if len(batch) == BATCH or size + entry_size(entry) > SIZE_LIMIT:
                yield batch
                batch, size = {}, 0
            batch[name] = entry
            size += entry_size(entry)
        if batch:
            yield batch

    def session(self, name: str) -> Session:
        """Return the session that a record tells of. Raises OSError or TattleError."""
        session = parse(self.records.read(name))
        if not session.moment.get("TATTLE_TIME", "").isdigit():
            raise TattleError("not a record of tattle's", EX_DATAERR)
        return session

    def publish(self, batch: dict[str, Entry], publisher: Publisher) -> TattleError | None:
        """Send one batch; remove what was accepted, set aside what never will be."""
        self.called = time.monotonic()
        try:
            results = publisher.publish(list(batch.values()))
        except TattleError as error:
            if error.status != EX_DATAERR:
                raise
            if len(batch) == 1:
                self.records.reject(next(iter(batch)), str(error))
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
                self.records.reject(name, str(refusal))
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
            if self.records.waiting():
                return True
        return False

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
    """Tell whether to believe what sshd said of the connection: check.believed()."""
    from tattle import check  # rarely asked for, and not small

    return check.believed(session)


def flush(progress: Callable[[int, int], None]) -> tuple[int, int, TattleError | None]:
    """Send what waits, without pauses; return how many went, how many remain, and what stops them.

    progress is called with both numbers on the way. Raises TattleError if the spool is of no use.
    """
    try:
        spool = Spool()
    except OSError as error:
        raise TattleError(f"can't use the spool: {error}", EX_UNAVAILABLE) from error
    deliverer, fault = Deliverer(spool), None
    end = time.monotonic() + LONGEST_PAUSE + LINGER
    while not spool.lock():
        progress(0, len(spool.waiting()))
        if time.monotonic() > end or not spool.waiting():
            return 0, len(spool.waiting()), TattleError("another tattle delivers", EX_TEMPFAIL)
        time.sleep(1)
    names = spool.waiting()
    while names and not fault:
        chunk, names = names[:CHUNK], names[CHUNK:]
        fault = deliverer.deliver(chunk)
        names = names or spool.waiting()
        progress(deliverer.delivered, len(names))
    spool.unlock()
    return deliverer.delivered, len(spool.waiting()), fault
