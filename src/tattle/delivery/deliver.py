"""The deliverer: empty the spool, oldest first, until EventBridge has all.

A process of its own, which a hook starts. It leaves the login, becomes the standby, and waits for
the deliverer's lock. No record is removed that EventBridge has not confirmed; what can
never be sent is set aside.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

import tattle
from tattle.delivery.fault import forget, keep, last
from tattle.delivery.leave import leave_login
from tattle.delivery.watchdog import Heartbeat, become_deliverer, become_standby
from tattle.errors import TattleError, Unanswered, defect, log
from tattle.event.config import Config, load
from tattle.event.pamd import trusts_sshd
from tattle.login.pam import Session, is_whole, parse
from tattle.login.spool import EMERGENCY_PATH, FAULT, LATE_SECONDS, PATH, WAKE, Spool, accepted_at
from tattle.unpack import from_archive, repair, unpack

if TYPE_CHECKING:
    from tattle.aws.eventbridge import Entry, Publisher

TIMEOUT = 60.0  # seconds for a connection, and for an answer: botocore's own default
CALL_SECONDS = 120.0  # for a whole call, however slowly an answer trickles in
FIRST_PAUSE = 1.0  # seconds: the upper end of the first jitter
LONGEST_PAUSE = 60.0  # seconds
# Seconds until what may have arrived is sent again; then twice as long, and so on. Within
# GIVE_UP_AFTER that makes five copies at most, after 0, 60, 180, 420 and 900 s.
RESEND_AFTER = 60.0
GIVE_UP_AFTER = 15 * 60.0  # seconds without a success until records wait for the next hook or flush
RECORD_WAKES_AFTER = 5.0  # seconds of a pause, so that a busy host doesn't try with every login
LINGER = 5.0  # seconds to stay for the next event, so that a busy host loads botocore once
POLL_SECONDS = 0.01  # between two looks while staying
WAKE_POLL_SECONDS = 0.5  # between two looks in a pause
GATHER = 0.04  # seconds between two calls that are not full, so that a burst becomes batches
LIFE = 15 * 60.0  # seconds after which a busy deliverer leaves it to a new one
BATCH = 10  # entries in a PutEvents call
# A file that is no record, whatever its name: a symbolic link, a folder, a socket, a device
FOREIGN = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)
AGAIN = "again"  # argument: has unpacked already. Prevents an exec loop


def main(arguments: list[str]) -> int:
    """Deliver for a hook that has let its login go on: `deliver PATH`. Return the exit status."""
    leave_login()
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"  # resolv.conf(5): for a dead name server
    status = os.EX_UNAVAILABLE
    try:
        close_inherited()
        if from_archive() and AGAIN not in arguments:
            # Nothing is unpacked, or the front door could not use it.
            with contextlib.suppress(TattleError):  # raised again below, and kept as the fault
                repair()
                unpack()
                begin_anew(AGAIN)
        spool = Spool(arguments[1])
        if not become_standby(spool):
            os._exit(0)
        become_deliverer(spool)
        status = 0 if is_given_up(spool) or deliver_until_empty(spool) else os.EX_TEMPFAIL
    except Exception as error:
        known = isinstance(error, (OSError, TattleError))
        log(f"events wait in the spool: {error if known else defect(error)}")
    os._exit(status)  # the standby delivers what has just been accepted


def close_inherited() -> None:
    """Close what the login had open, however high its number; not the archive that we run from."""
    ours = {0, 1, 2, *map(int, re.findall("^/proc/self/fd/([0-9]+)/", tattle.__path__[0]))}
    for fd in {*map(int, os.listdir("/proc/self/fd"))} - ours:
        with contextlib.suppress(OSError):  # that of the listing
            os.close(fd)


def begin_anew(*arguments: str) -> NoReturn:
    """Replace this process by a new one, of the build that is installed and unpacked now."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # an exec keeps it
    os.execve(sys.argv[0], [*sys.argv[:3], *arguments], {})


def is_given_up(spool: Spool) -> bool:
    """Tell whether the last deliverer gave up on all that waits, which is for the next login."""
    fault, names = last(spool), spool.waiting()
    if not fault or not fault.gave_up or not names or spool.holds(WAKE):
        return False
    return accepted_at(names[-1]) < fault.time < time.time()  # else the clock was set back


def deliver_until_empty(spool: Spool) -> bool:
    """Deliver what waits in this spool and in the other one. Tell whether nothing is left."""
    spools = [spool]
    other = EMERGENCY_PATH if spool.path == PATH else PATH
    with contextlib.suppress(OSError, TattleError):
        if os.path.isdir(other):
            second = Spool(other)
            if second.lock():
                spools.append(second)
    with Heartbeat(spools) as heartbeat:
        return Deliverer(spools, heartbeat).run(LINGER)


def backoff(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row: full jitter below what doubles."""
    longest = FIRST_PAUSE
    while True:
        yield uniform(0, longest)
        longest = min(2 * longest, LONGEST_PAUSE)


class Deliverer:
    """Delivers from the spools whose locks it holds. Raises no TattleError."""

    def __init__(self, spools: list[Spool], heartbeat: Heartbeat) -> None:
        self.spools = spools
        self.heartbeat = heartbeat
        self.spool_of: dict[str, Spool] = {}
        self.publisher: Publisher | None = None
        self.config = Config()
        self.delivered = 0
        self.fault: TattleError | None = None  # that of the last try
        self.unremoved: set[str] = set()  # records that EventBridge has
        self.stuck: set[str] = set()  # records that could not be set aside
        self.kept_back: TattleError | None = None  # what keeps back some of a try's records
        self.called = 0.0  # time.monotonic() of the last call

    def run(self, linger: float) -> bool:
        """Deliver with retries, then stay for linger seconds. Tell whether nothing is left."""
        began = success = time.monotonic()
        pauses, resending = backoff(), resend_pauses()
        late = False
        while True:
            self.answer_wake()
            names = self.waiting()
            since_call = time.monotonic() - self.called
            if 0 < len(names) < BATCH and since_call < GATHER:
                time.sleep(GATHER - since_call)
                names = self.waiting()
            late = late or (bool(names) and time.time() - accepted_at(names[0]) > LATE_SECONDS)
            if not names:
                self.recovered(late)
                late = False
                if time.monotonic() - began > LIFE or not self.more_within(linger):
                    return True
                continue
            before, tried = self.delivered, time.time()
            fault = self.deliver(names)
            if self.delivered > before:
                success, pauses = time.monotonic(), backoff()
            if not fault:
                resending = resend_pauses()
                continue
            gives_up = time.monotonic() - success > GIVE_UP_AFTER
            self.keep_fault(fault, gives_up, tried)
            if gives_up:
                return False
            if isinstance(fault, Unanswered):
                self.pause(next(resending))
            else:
                self.pause(next(pauses), newest=names[-1])

    def deliver(self, names: list[str]) -> TattleError | None:
        """Send these records once, oldest first; return the fault that kept some of them back.

        Stops where EventBridge can't be had; goes on where it refused single entries, or one bus.
        """
        self.kept_back = None
        try:
            names = self.sendable(names)
            with self.heartbeat.at_most(CALL_SECONDS, too_slow()):
                publisher = self.current_publisher()
                publisher.prepared_client()
            self.send(names, publisher)
            gc.enable()  # begin_to_leave() has disabled it
        except TattleError as error:
            self.kept_back = error
        except Exception as error:  # one that nobody expected must not end the deliverer
            self.kept_back = defect(error)
        if self.kept_back and self.kept_back.status != os.EX_TEMPFAIL:
            self.publisher = None  # files, role or network: ask again when trying again
        return self.kept_back

    def sendable(self, names: list[str]) -> list[str]:
        """Return those that lie where delivered records can be removed, which is done first.

        Raises TattleError if none does.
        """
        try:
            self.remove_delivered()
        except TattleError as error:
            self.kept_back = error
            unwritable = {self.spool_of[name] for name in self.unremoved}
            names = [name for name in names if self.spool_of[name] not in unwritable]
            if not names:
                raise
        return names

    def current_publisher(self) -> Publisher:
        """Return the publisher for the configuration as it is now. Raises TattleError."""
        config = load()
        if self.publisher is None or config != self.config:
            unpack()
            from tattle.aws.eventbridge import Publisher

            self.publisher, self.config = Publisher(config, TIMEOUT), config
        return self.publisher

    def send(self, names: list[str], publisher: Publisher) -> None:
        """Send these records. Raises TattleError if that keeps back all that is left."""
        refusing: set[str] = set()
        for bus, batch in self.batches(names, publisher):
            if bus not in refusing:
                try:
                    self.publish(batch, publisher)
                except TattleError as error:
                    if error.status not in (os.EX_NOPERM, os.EX_CONFIG):
                        raise
                    refusing.add(bus)
                    self.kept_back = self.kept_back or error

    def batches(
        self, names: list[str], publisher: Publisher
    ) -> Iterator[tuple[str, dict[str, Entry]]]:
        """Yield event bus and entries by record, as many as one call takes, all for that bus.

        Sets aside what is no event.
        """
        from tattle.aws.eventbridge import SIZE_LIMIT, entry_size

        filling: dict[str, dict[str, Entry]] = {}
        sizes: dict[str, int] = {}
        for name in names:
            with self.heartbeat.at_most(CALL_SECONDS, too_slow()):  # IMDS may be asked for a tag
                entry = self.entry(name, publisher)
            if entry is None:
                continue
            bus, size = entry.get("EventBusName", ""), entry_size(entry)
            batch = filling.get(bus, {})
            if len(batch) == BATCH or sizes.get(bus, 0) + size >= SIZE_LIMIT:
                yield bus, batch
                batch, sizes[bus] = {}, 0
            filling[bus] = {**batch, name: entry}
            sizes[bus] = sizes.get(bus, 0) + size
        yield from filling.items()

    def entry(self, name: str, publisher: Publisher) -> Entry | None:
        """Return a record's entry; None if it has none, and then it is out of the way."""
        try:
            return publisher.entry(self.session(name), trusts_sshd)
        except TattleError as error:
            if error.status not in (os.EX_DATAERR, os.EX_USAGE):
                raise
            self.set_aside(name, str(error))
        except OSError as error:
            if error.errno in FOREIGN:
                self.set_aside(name, str(error))
            elif self.spool_of[name].holds(name):  # else somebody removed it
                fault = f"can't read {self.spool_of[name].path}/{name}: {error.strerror}"
                self.kept_back = TattleError(fault, os.EX_TEMPFAIL, "sudo tattle check")
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            self.set_aside(name, f"{type(error).__name__}: {error}")  # it must not keep others back
        return None

    def session(self, name: str) -> Session:
        """Return the session that a record tells of. Raises OSError or TattleError."""
        record = self.spool_of[name].read(name)
        session = parse(record)
        if not is_whole(record) or not re.fullmatch(r"[0-9]{1,19}", session.context["TATTLE_TIME"]):
            raise TattleError("an incomplete record", os.EX_DATAERR)
        return session

    def set_aside(self, name: str, reason: str) -> None:
        """Put what can never be sent out of the way; failing that, leave it alone from now on."""
        try:
            self.spool_of[name].set_aside(name, reason)
        except OSError as error:
            self.stuck.add(name)
            log(f"can't set aside {name} ({reason}): {error}")

    def publish(self, batch: dict[str, Entry], publisher: Publisher) -> None:
        """Send one batch; remove what was accepted, set aside what never will be.

        Raises TattleError if the call as a whole did not succeed.
        """
        self.called = time.monotonic()
        try:
            too_late = Unanswered(f"no whole answer within {CALL_SECONDS:.0f} s")
            with self.heartbeat.at_most(CALL_SECONDS, too_late):
                results = publisher.publish(list(batch.values()))
        except TattleError as error:
            if error.status != os.EX_DATAERR:
                raise
            if len(batch) == 1:
                self.set_aside(next(iter(batch)), str(error))
            else:
                for name, entry in batch.items():  # one of them made the call fail
                    self.publish({name: entry}, publisher)
            return
        accepted = [name for name, result in zip(batch, results) if not result.error]
        self.delivered += len(accepted)
        self.unremoved.update(accepted)
        self.remove_delivered()
        for name, (_, refusal) in zip(batch, results):
            if refusal and refusal.status == os.EX_DATAERR:
                self.set_aside(name, str(refusal))
            elif refusal:
                self.kept_back = refusal

    def remove_delivered(self) -> None:
        """Remove what EventBridge has. Raises TattleError; it is not sent a second time then."""
        fault = None
        for spool in self.spools:
            names = sorted(name for name in self.unremoved if self.spool_of[name] is spool)
            try:
                spool.remove(names)
                self.unremoved.difference_update(names)
            except OSError as error:
                message = f"can't remove what is delivered from {spool.path}: {error.strerror}"
                fault = TattleError(message, os.EX_IOERR, "sudo tattle check")
        if fault:
            raise fault

    def more_within(self, seconds: float) -> bool:
        """Stay for so long; tell whether there is a record to deliver."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if self.waiting():
                return True
        return False

    def pause(self, seconds: float, newest: str = "") -> None:
        """Wait before trying again; a flush, or after a while a newer record, cuts it short."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds:
            time.sleep(min(WAKE_POLL_SECONDS, seconds - waited))
            if any(spool.holds(WAKE) for spool in self.spools):
                return
            if newest and waited > RECORD_WAKES_AFTER and self.waiting()[-1:] > [newest]:
                return

    def answer_wake(self) -> None:
        """Tell a waiting flush that this try is for it: the next fault that is kept is its."""
        for spool in self.spools:
            if spool.holds(WAKE):
                spool.remove([FAULT, WAKE])

    def waiting(self) -> list[str]:
        """Return the names of the records to deliver, oldest first."""
        self.heartbeat.turn()
        found = {name: spool for spool in self.spools for name in spool.waiting()}
        self.spool_of = {**{name: self.spool_of[name] for name in self.unremoved}, **found}
        return sorted(found.keys() - self.stuck)

    def keep_fault(self, error: TattleError, gave_up: bool, tried: float) -> None:
        """Keep and log what keeps back the events that were there when it was tried.

        The same fault is logged once.
        """
        if self.fault is None:
            self.delivered = 0  # what had not waited
        if self.fault is None or without_digits(error) != without_digits(self.fault):
            if repair():
                begin_anew()
            log(f"events wait in the spool: {error}")
        self.fault = error
        waiting = len(self.waiting())
        for spool in self.spools:
            keep(spool, error, waiting, gave_up, tried)

    def recovered(self, late: bool) -> None:
        """Forget the fault, and log that events are delivered again."""
        if self.fault or late:
            log(f"delivering again: {self.delivered} events that had waited are sent")
        self.fault = None
        self.delivered = 0
        for spool in self.spools:
            forget(spool)


def resend_pauses() -> Iterator[float]:
    """Yield the seconds until what may have arrived is sent again."""
    return (RESEND_AFTER * 2**count for count in itertools.count())


def without_digits(error: TattleError) -> str:
    """Return an error's message without what changes with every try, such as a time."""
    return re.sub("[0-9]+", "", str(error))


def too_slow() -> TattleError:
    """Return the error for an IMDS or STS whose answers never end."""
    fault = f"no whole answer from IMDS, or for the role, within {CALL_SECONDS:.0f} s"
    return TattleError(fault, os.EX_UNAVAILABLE, "sudo tattle check")
