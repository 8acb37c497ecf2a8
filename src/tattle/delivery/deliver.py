"""The deliverer: empty the spool, oldest first, until EventBridge has all.

A process of its own, started by a hook, which shares nothing with the login but its standard input:
a file in the spool whose lock says that it is next. It leaves the login, and then waits for the
lock of the deliverer.
Nothing here forgets a record that EventBridge has not confirmed, unless it is set aside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tattle.delivery.config import Config, load
from tattle.delivery.fault import forget, keep
from tattle.delivery.watchdog import Heartbeat, Watch
from tattle.errors import TattleError, log
from tattle.login.hook import SIGNALS, lift_limits
from tattle.login.pam import Session, parse
from tattle.login.spool import EMERGENCY_PATH, PATH, WAKE, Spool, accepted_at
from tattle.unpack import from_archive, unpack, unpack_again

if TYPE_CHECKING:
    from tattle.delivery.events import Entry, Publisher

ATTEMPTS = 1  # a call: what was sent and got no answer may have arrived
TIMEOUT = 60.0  # seconds for a connection, and for an answer: botocore's own default
CALL_SECONDS = 120  # for a whole call, however slowly an answer trickles in
FIRST_PAUSE = 1.0  # seconds: the upper end of the first jitter
LONGEST_PAUSE = 60.0  # seconds
GIVE_UP_AFTER = 15 * 60.0  # seconds without a success until records wait for the next hook or flush
RECORD_WAKES_AFTER = 5.0  # seconds of a pause, so that a busy host doesn't try with every login
LINGER = 5.0  # seconds to stay for the next event, so that a busy host loads botocore once
POLL_SECONDS = 0.01  # between two looks while staying
WAKE_POLL_SECONDS = 0.5  # between two looks in a pause
GATHER = 0.04  # seconds between two calls that are not full, so that a burst becomes batches
LIFE = 15 * 60.0  # seconds after which a busy deliverer makes room for a fresh one
BATCH = 10  # entries in a PutEvents call
# A file that is no record, whatever its name: a symbolic link, a folder, a socket, a device
FOREIGN = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)
BACKLOG = 60.0  # seconds of waiting after which a delivery is a recovery, worth a line in the log
NICE = 10  # what else the machine does comes first
CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two


def main(arguments: list[str]) -> int:
    """Deliver for a hook that has let its login go on; `deliver PATH`. Return the exit status."""
    leave_login()
    try:
        if from_archive():
            # Either nothing is unpacked, or the front door could not use it.
            if unpack_again() and "again" not in arguments:
                os.execve(sys.argv[0], [*sys.argv, "again"], {})
            unpack()
        else:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    except TattleError as error:
        log(f"events wait in the spool: {error}")  # tried again, and told, with each event
    try:
        spool = Spool(arguments[1])
        Watch(spool).wait()
        os.dup2(spool.lock_fd, 0)  # lets go of the lock of who is next
        os.close(spool.lock_fd)
        spool.lock_fd = 0
        status = deliver_until_empty(spool)
    except (OSError, TattleError) as error:
        log(f"events wait in the spool: {error}")
        status = os.EX_UNAVAILABLE
    os._exit(status)  # nothing is left to do


def run_again(spool: Spool) -> NoReturn:
    """Let go of the lock and begin anew, from what is unpacked now."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(sys.argv[0], [sys.argv[0], "deliver", spool.path], {})


def leave_login() -> None:
    """Leave what the login could hold: its cgroup, session, folder, limits and priority."""
    for hierarchy in CGROUPS:
        with contextlib.suppress(OSError):  # it may not be there, or not ours to write
            Path(f"/sys/fs/cgroup/{hierarchy}cgroup.procs").write_text("0")
    for number in SIGNALS:
        usual = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN)  # forgets what was sent to the login
        signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError):
        os.setsid()
    os.chdir("/")
    os.umask(0o077)
    lift_limits()
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"  # resolv.conf(5): a dead name server


def deliver_until_empty(spool: Spool) -> int:
    """Deliver what waits in this spool and in the other one. Return the exit status."""
    spools = [spool]
    other = EMERGENCY_PATH if spool.path == PATH else PATH
    with contextlib.suppress(OSError, TattleError):
        if os.path.isdir(other):
            second = Spool(other)
            if second.lock():
                spools.append(second)
    with Heartbeat(spools) as heartbeat:
        deliverer = Deliverer(spools, heartbeat)
        while True:
            emptied = deliverer.run(LINGER)
            for held in spools:
                held.unlock()
            # What was accepted after our last look found the lock taken, and left it to us.
            if not emptied or not deliverer.waiting() or not spool.lock():
                return 0 if emptied else os.EX_TEMPFAIL
            spools[1:] = [held for held in spools[1:] if held.lock()]


def backoff(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row: full jitter below what doubles."""
    longest = FIRST_PAUSE
    while True:
        yield uniform(0, longest)
        longest = min(2 * longest, LONGEST_PAUSE)


class Deliverer:
    """One run of delivery, by whoever holds the lock. Nothing in it raises TattleError."""

    def __init__(self, spools: list[Spool], heartbeat: Heartbeat) -> None:
        self.spools = spools
        self.heartbeat = heartbeat
        self.spool_of: dict[str, Spool] = {}
        self.publisher: Publisher | None = None
        self.config = Config()
        self.delivered = 0
        self.fault: TattleError | None = None
        self.unremoved: set[str] = set()  # records that EventBridge has
        self.stuck: set[str] = set()  # records that could not be set aside
        self.unread: TattleError | None = None
        self.called = 0.0  # time.monotonic() of the last call

    def run(self, linger: float) -> bool:
        """Deliver with retries, then stay for linger seconds. Tell whether nothing is left."""
        began = success = time.monotonic()
        pauses = backoff()
        late = False
        while True:
            names = self.waiting()
            since_call = time.monotonic() - self.called
            if 0 < len(names) < BATCH and since_call < GATHER:
                time.sleep(GATHER - since_call)
                names = self.waiting()
            late = late or (bool(names) and time.time() - accepted_at(names[0]) > BACKLOG)
            if not names:
                self.recovered(late)
                late = False
                if time.monotonic() - began > LIFE or not self.more_within(linger):
                    return True
                continue
            before = self.delivered
            fault = self.deliver(names)
            if self.delivered > before:
                success, pauses = time.monotonic(), backoff()
            if fault:
                self.keep_fault(fault, len(self.waiting()))
                if time.monotonic() - success > GIVE_UP_AFTER:
                    return False
                self.pause(next(pauses))

    def deliver(self, names: list[str]) -> TattleError | None:
        """Send these records once, oldest first; return the fault that kept some of them back.

        Stops where EventBridge can't be had; goes on where it refused single entries, or one bus.
        """
        self.unread = None
        faults: dict[str, TattleError] = {}  # by event bus
        try:
            self.remove_delivered()
            with self.heartbeat.at_most(CALL_SECONDS):
                publisher = self.current_publisher()
            for bus, batch in self.batches(names, publisher):
                if bus not in faults:
                    fault = self.publish(batch, publisher)
                    if fault:
                        faults[bus] = fault
        except TattleError as error:
            if error.status != os.EX_TEMPFAIL:
                self.publisher = None  # files, role or network: ask again when trying again
            return error
        except Exception as error:  # a defect must not take the next event's deliverer with it
            self.publisher = None
            return defect(error)
        return next(iter(faults.values()), self.unread)

    def current_publisher(self) -> Publisher:
        """Return the publisher for the configuration as it is now. Raises TattleError."""
        config = load()
        if self.publisher is not None and config == self.config:
            return self.publisher
        try:
            unpack()
            from tattle.delivery.events import Publisher

            publisher = Publisher(config, ATTEMPTS, TIMEOUT)
        except TattleError:
            raise
        except Exception as error:  # a file of the unpacked build is missing or damaged
            if not unpack_again():
                raise
            log(f"the unpacked build is damaged and was unpacked again: {error!r}")
            return run_again(self.spools[0])
        self.publisher, self.config = publisher, config
        return publisher

    def batches(
        self, names: list[str], publisher: Publisher
    ) -> Iterator[tuple[str, dict[str, Entry]]]:
        """Yield event bus and entries by record, as many as one call takes, all for that bus.

        Sets aside what is no event.
        """
        from tattle.delivery.events import SIZE_LIMIT, entry_size

        filling: dict[str, dict[str, Entry]] = {}
        for name in names:
            entry = self.entry(name, publisher)
            if entry is None:
                continue
            bus = entry.get("EventBusName", "default")
            batch = filling.setdefault(bus, {})
            size = sum(map(entry_size, batch.values()))
            if len(batch) == BATCH or size + entry_size(entry) >= SIZE_LIMIT:
                yield bus, batch
                batch = filling[bus] = {}
            batch[name] = entry
        yield from filling.items()

    def entry(self, name: str, publisher: Publisher) -> Entry | None:
        """Return a record's entry; None if it has none, and then it is out of the way."""
        try:
            return publisher.entry(self.session(name), believed)
        except TattleError as error:
            if error.status not in (os.EX_DATAERR, os.EX_USAGE):
                raise
            self.set_aside(name, str(error))
        except OSError as error:
            if error.errno in FOREIGN:
                self.set_aside(name, str(error))
            elif self.spool_of[name].holds(name):  # else somebody removed it
                self.unread = TattleError(f"can't read {name}: {error}", os.EX_TEMPFAIL)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            self.set_aside(name, f"{type(error).__name__}: {error}")  # it must not stop others
        return None

    def session(self, name: str) -> Session:
        """Return the session that a record tells of. Raises OSError or TattleError."""
        record = self.spool_of[name].read(name)
        session = parse(record)
        whole = record.endswith(b"\0") and "TATTLE_BOOT" in session.context
        if not whole or not re.fullmatch(r"[0-9]{1,19}", session.context["TATTLE_TIME"]):
            raise TattleError("a torn record", os.EX_DATAERR)
        return session

    def set_aside(self, name: str, reason: str) -> None:
        """Put what can never be sent out of the way; failing that, leave it alone from now on."""
        try:
            self.spool_of[name].reject(name, reason)
        except OSError as error:
            self.stuck.add(name)
            log(f"can't set aside {name} ({reason}): {error}")

    def publish(self, batch: dict[str, Entry], publisher: Publisher) -> TattleError | None:
        """Send one batch; remove what was accepted, set aside what never will be.

        Returns what keeps some of it back; raises TattleError if that keeps back everything.
        """
        self.called = time.monotonic()
        try:
            with self.heartbeat.at_most(CALL_SECONDS):
                results = publisher.publish(list(batch.values()))
        except TattleError as error:
            if error.status in (os.EX_NOPERM, os.EX_CONFIG):
                return error  # this bus's, maybe
            if error.status != os.EX_DATAERR:
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
            if refusal and refusal.status == os.EX_DATAERR:
                self.set_aside(name, str(refusal))
            elif refusal:
                fault = refusal
        return fault

    def remove_delivered(self) -> None:
        """Remove what EventBridge has; what can't be removed is at least not sent a second time."""
        for spool in self.spools:
            spool.remove(sorted(n for n in self.unremoved if self.spool_of[n] is spool))
        self.unremoved.clear()

    def more_within(self, seconds: float) -> bool:
        """Stay for so long; tell whether there is a record to deliver."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if self.waiting():
                return True
        return False

    def pause(self, seconds: float) -> None:
        """Wait before trying again; a flush, or after a while a new record, cuts it short."""
        began = time.monotonic()
        before = self.waiting()
        while (waited := time.monotonic() - began) < seconds:
            time.sleep(min(WAKE_POLL_SECONDS, seconds - waited))
            for spool in self.spools:
                if spool.holds(WAKE):
                    spool.remove([WAKE])
                    return
            if waited > RECORD_WAKES_AFTER and self.waiting()[-1:] != before[-1:]:
                return

    def waiting(self) -> list[str]:
        """Return the names of the records to deliver, oldest first."""
        found = {name: spool for spool in self.spools for name in spool.waiting()}
        self.spool_of = {**{name: self.spool_of[name] for name in self.unremoved}, **found}
        return sorted(found.keys() - self.stuck)

    def keep_fault(self, error: TattleError, waiting: int) -> None:
        """Say what keeps events back: in the log once, however often it is tried."""
        if self.fault is None or str(error) != str(self.fault):
            log(f"events wait in the spool: {error}")
        self.fault = error
        keep(self.spools[0], error, waiting)

    def recovered(self, late: bool) -> None:
        """Say that nothing keeps events back any longer."""
        if self.fault or late:
            log(f"delivering again: {self.delivered} events that had waited are sent")
        self.fault = None
        forget(self.spools[0])


def defect(error: Exception) -> TattleError:
    """Return the error that tells of one of ours."""
    advice = "please report it, with the output of: tattle --debug"
    return TattleError(f"a defect: {type(error).__name__}: {error}", os.EX_SOFTWARE, advice)


def believed(session: Session) -> bool:
    """Tell whether to believe what sshd said of the connection: pamd.believed()."""
    from tattle.delivery import pamd  # rarely asked for

    return pamd.believed(session)
