"""The deliverer: a process of its own, which a hook starts. This is its life.

Detach from the login, have on disk what it accepted, stand by, take the deliverer's lock, and send
until nothing is left. batches.py sends; due.py says when.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from tattle.delivery import last_error
from tattle.delivery.batches import BATCH_SIZE, Sender
from tattle.delivery.detach import detach
from tattle.delivery.due import Due
from tattle.delivery.leave_cgroup import end_within
from tattle.delivery.ledger import LOOK_SECONDS
from tattle.delivery.lock import DelivererLock
from tattle.delivery.queue import Queue
from tattle.delivery.records import WAKE, Records
from tattle.delivery.reporter import Reporter
from tattle.delivery.wake import Alarm
from tattle.delivery.watchdog import Heartbeat, become_deliverer, become_standby
from tattle.errors import TattleError, defect, log
from tattle.login.hook import SIGNALS
from tattle.login.process import read
from tattle.login.spool import EMERGENCY_PATH, PATH, accepted_at
from tattle.unpack import from_archive, repair, unpack

LINGER_SECONDS = 5.0  # to stay for the next event, so that a busy host loads botocore once
# Between two calls that are not full, on average: steady logins become batches, a single one does
# not wait for others.
CALL_INTERVAL_SECONDS = 0.2
CALLS_AHEAD = 3  # that may be made sooner
MAX_LIFE_SECONDS = 15 * 60.0  # after which a busy deliverer leaves it to a new one
SHUTDOWN = b"systemd-shutdow"  # the kernel keeps 15 bytes of a name: proc_pid_comm(5)
ALREADY_UNPACKED = "again"  # an argument. Prevents an exec loop


def main(arguments: list[str]) -> NoReturn:
    """Deliver for a hook that has let its login go on: `deliver PATH`. End with the exit status."""
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"  # resolv.conf(5): for a dead name server
    status = os.EX_UNAVAILABLE
    syncing = None
    try:
        detach()
        records = Records(arguments[1])
        syncing = Syncing(records.path)
        syncing.start()
        if is_shutting_down():
            status = 0
        else:
            if from_archive() and ALREADY_UNPACKED not in arguments:
                # Nothing is unpacked, or the first member of the archive could not use it.
                with contextlib.suppress(TattleError):  # raised again below, and kept as last error
                    repair()
                    unpack()
                    begin_anew(ALREADY_UNPACKED)
            status = take_turn(records, syncing)
    except Exception as error:
        known = isinstance(error, (OSError, TattleError))
        log(f"events wait in the spool: {error if known else defect(error)}")
    if syncing and syncing.thread.is_alive():
        syncing.thread.join()
    os._exit(status)  # the standby delivers what has just been accepted


def take_turn(records: Records, syncing: Syncing) -> int:
    """Stand by, then deliver until nothing is left. Return the exit status."""
    standby = become_standby(records)
    end_within(0)  # from now on others watch
    lock = become_deliverer(records, standby, syncing.start) if standby else None
    if not standby or not lock:
        return 0
    lock.file.beat()
    standby.release()
    return 0 if is_given_up(records) or deliver_until_empty(lock) else os.EX_TEMPFAIL


class Syncing:
    """Has on disk what hooks have not, in a thread: no login, event or heartbeat waits for that."""

    def __init__(self, path: str) -> None:
        self.records = Records(path)  # of its own: to list a directory moves its descriptor
        self.thread = threading.Thread()
        self._error = ""

    def start(self) -> None:
        """Begin with what was accepted since the last time, unless that goes on."""
        if self.thread.is_alive():
            return
        self.thread = threading.Thread(target=self._sync)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are for the main thread
        try:
            self.thread.start()
        except RuntimeError:  # a container that may hold no more threads
            self.thread.run()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _sync(self) -> None:
        error = ""
        try:
            self.records.sync_new()
        except OSError as failed:
            error = f"can't be sure that events are on disk: {failed}"
        if error not in ("", self._error):
            log(error)
        self._error = error


def is_shutting_down() -> bool:
    """Tell whether systemd has stopped all services and ends every process: systemd-shutdown(8).

    It waits 90 seconds for who does not obey its one SIGTERM, which may have been discarded with
    what was meant for the login.
    """
    with contextlib.suppress(OSError):
        return read("/proc/1/comm").startswith(SHUTDOWN)
    return False


def begin_anew(*arguments: str) -> NoReturn:
    """Replace this process by a new one, of the build that is installed and unpacked now."""
    end_within(0)  # an exec keeps it
    os.execve(sys.argv[0], [*sys.argv[:3], *arguments], {})


def is_given_up(records: Records) -> bool:
    """Tell whether the last deliverer gave up on all that waits, which is for the next login."""
    last, names = last_error.read(records), records.names()
    if not last or not last.gave_up or not names or records.holds(WAKE):
        return False
    return accepted_at(names[-1]) < last.time < time.time()  # else the clock was set back


def deliver_until_empty(lock: DelivererLock) -> bool:
    """Deliver what waits in this spool and in the other one. Tell whether nothing is left."""
    locks = [lock]
    other = EMERGENCY_PATH if lock.records.path == PATH else PATH
    with contextlib.suppress(OSError, TattleError):
        if os.path.isdir(other):
            second = DelivererLock(Records(other))
            if second.acquire():
                locks.append(second)
    queue = Queue(locks)
    alarm = Alarm(spool.fd for spool in queue.spools)
    with Heartbeat(locks) as heartbeat:
        sender = Sender(queue, heartbeat)
        sleep = functools.partial(heartbeat.sleep, alarm)
        deliverer = Deliverer(queue, sender, heartbeat, sleep, lambda: look_at_sessions(queue))
        return deliverer.run(LINGER_SECONDS)


def look_at_sessions(queue: Queue) -> None:
    """Accept what no hook reported: look()."""
    try:
        from tattle.delivery.look import look  # the first event need not wait for it
    except Exception as error:  # the unpacked build is damaged, or an upgrade has removed it
        if repair():
            begin_anew()
        log(f"can't look for sessions that were not reported: {error}")
    else:
        look(queue.ledgers())


class Deliverer:
    """Sends what is due, until nothing is left. Raises no TattleError.

    sleep is given the most seconds to sleep, and returns sooner if something is accepted. look is
    called once a minute, when nothing is due; every other minute, if something always is.
    """

    def __init__(
        self,
        queue: Queue,
        sender: Sender,
        heartbeat: Heartbeat,
        sleep: Callable[[float], None],
        look: Callable[[], None],
    ) -> None:
        self.queue, self.sender, self.heartbeat = queue, sender, heartbeat
        self.sleep, self.look = sleep, look
        self.reporter = Reporter(queue)

    def run(self, linger: float) -> bool:
        """Deliver with retries, then stay for linger seconds. Tell whether nothing is left."""
        now = time.monotonic()
        due, life_ends, leaves_at = Due(now), now + MAX_LIFE_SECONDS, now + linger
        paced_until = next_look = now
        while self.queue.keep_locks():
            self.heartbeat.note_progress()
            if self.queue.take_wake_request():
                due.try_all()
            waiting, now = self.queue.names(), time.monotonic()
            names = due.names(waiting, now)
            too_soon = paced_until - CALLS_AHEAD * CALL_INTERVAL_SECONDS - now
            if 0 < len(names) < BATCH_SIZE and too_soon > 0:
                time.sleep(too_soon)
            elif names and now < next_look + LOOK_SECONDS:  # a flood must not put it off for ever
                paced_until = max(paced_until, now) + CALL_INTERVAL_SECONDS
                paced_until = min(paced_until, now + (CALLS_AHEAD + 1) * CALL_INTERVAL_SECONDS)
                if self.attempt(due, names, waiting):
                    return False
                leaves_at = time.monotonic() + linger
            elif now >= next_look:
                next_look = now + LOOK_SECONDS
                self.look()
            else:
                if not waiting:
                    self.reporter.nothing_waits()
                seconds = due.seconds(waiting, now)
                if seconds == math.inf and now >= min(leaves_at, life_ends):
                    return not waiting
                self.sleep(leaves_at - now if seconds == math.inf else seconds)
        return False

    def attempt(self, due: Due, names: list[str], waiting: list[str]) -> bool:
        """Send what is due of what waits; tell whether all of it is left to the next login."""
        tried = time.time()
        outcome = self.sender.send(names)
        gc.enable()  # start_leaving() has disabled it
        now = time.monotonic()
        due.note(outcome, waiting, now)
        if outcome.error and self.reporter.is_news(outcome.error) and repair():
            begin_anew()
        gives_up = outcome.error is not None and due.gives_up(waiting, now)
        self.reporter.note_attempt(outcome, gives_up, tried, accepted_at(names[0]))
        return gives_up
