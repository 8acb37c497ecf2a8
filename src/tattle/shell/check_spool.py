"""The probe of the spool: its disk, what waits in it, what keeps that back, what was rejected."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator

from tattle.delivery import last_error, lock, watchdog
from tattle.delivery.records import DELIVERER, ELSEWHERE, LATE_SECONDS, OWN_FILES, Records
from tattle.errors import TattleError
from tattle.login.spool import EMERGENCY_PATH, PATH, REJECTED, Spool, accepted_at, is_record
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding, failed

NOTHING_BACK = "nothing keeps events back"
NOTHING_REJECTED = "nothing was rejected"
NOTHING_ELSEWHERE = "nothing is another machine's"
DEAD_AFTER = watchdog.DEAD_AFTER[DELIVERER]


def spool() -> Iterator[Finding]:
    """Look at the spool's disk, at what waits, what was rejected, and why."""
    if os.geteuid() != 0:
        for id_ in ("disk", "spool", "rejected", "elsewhere", "delivery"):
            yield Finding(id_, SKIPPED, "needs root")
        return
    yield disk()
    if not os.path.lexists(PATH):
        yield Finding("spool", OK, f"no {PATH} yet: no login since the installation")
        yield Finding("delivery", OK, NOTHING_BACK)
        yield Finding("rejected", OK, NOTHING_REJECTED)
        yield Finding("elsewhere", OK, NOTHING_ELSEWHERE)
    for path in (PATH, EMERGENCY_PATH):
        if os.path.lexists(path):
            try:
                yield from records(Records(path))
            except TattleError as error:
                yield failed("spool", error)


def disk() -> Finding:
    """Look whether the spool's disk takes more records."""
    made = os.path.isdir(PATH) and not os.path.islink(PATH)
    mount = PATH if made else os.path.dirname(PATH)
    status = os.statvfs(mount)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    if status.f_flag & os.ST_RDONLY:
        return Finding("disk", ERROR, f"{mount} is read-only", f"sudo mount -o remount,rw {mount}")
    full = "" if status.f_bfree and (status.f_ffree or not status.f_files) else "the disk is full"
    try:
        if made:
            Spool().check_room()
    except TattleError:
        pass  # the spool's own finding
    except OSError as error:
        full = str(error)
    if full:
        advice = f"make room: sudo du -xh {mount} | sort -h | tail"
        return Finding("disk", ERROR, f"{mount}: {full}", advice)
    return Finding("disk", OK, f"{mount} has room")


def records(spool: Records) -> Iterator[Finding]:
    """Look at what waits in a spool, what keeps it back, and at what was rejected."""
    for path in (f"{spool.path}/{name}" for name in OWN_FILES):
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            yield Finding("spool", ERROR, f"{path} is not a file", f"sudo rm -r {path}")
    names = sorted(filter(is_record, os.listdir(spool.fd)))
    age = time.time() - accepted_at(names[0]) if names else 0.0
    message = f"{len(names)} waiting in {spool.path}"
    message += f", the oldest {since(age)}" if names else ""
    severity = ERROR if age > LATE_SECONDS else OK
    if names and spool.path == EMERGENCY_PATH:
        severity, message = ERROR, f"{message}; a reboot empties it"
    if names or spool.path == PATH:
        yield Finding("spool", severity, message, "sudo tattle flush" if severity == ERROR else "")
    stuck = stuck_deliverer(spool) if age > LATE_SECONDS else ""
    last = last_error.read(spool) if names else None
    if stuck:
        yield Finding("delivery", ERROR, stuck, f"end it: sudo fuser -v {spool.path}")
    elif last:
        message = f"{last.message} ({since(time.time() - last.time)})"
        yield Finding("delivery", ERROR, message, last.advice)
    elif spool.path == PATH:
        yield Finding("delivery", OK, NOTHING_BACK)
    yield from rejected(spool)
    yield from elsewhere(spool)


def since(seconds: float) -> str:
    """Return how long something has been so, in words."""
    return f"for {seconds:.0f} s" if seconds >= 0 else "since before the clock was set back"


def stuck_deliverer(spool: Records) -> str:
    """Return who holds the deliverer's lock without a heartbeat; "" if nobody does."""
    if not lock.is_locked(spool):
        return ""
    holder = lock.holder(spool, DELIVERER)
    who = f"process {holder.pid}" if holder and holder.is_alive() else "a process unknown to tattle"
    path = f"{spool.path}/{DELIVERER}"
    silent = time.time() - os.lstat(path).st_mtime if os.path.lexists(path) else DEAD_AFTER
    if abs(silent) < DEAD_AFTER:
        return ""
    return f"{who} holds the lock of {spool.path}, and shows no heartbeat"


def count(names: list[str], noun: str) -> str:
    """Return how many there are, in words."""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def rejected(spool: Records) -> Iterator[Finding]:
    """Look at what was rejected: records to send again, and what is no record."""
    directory = f"{spool.path}/{REJECTED}"
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    events = [name for name in names if is_record(name)]
    others = [shlex.quote(f"{directory}/{name}") for name in names if not is_record(name)]
    if events:
        message = (
            f"{count(events, 'event')} in {directory}: the log says why (journalctl -t tattle)"
        )
        back = f"sudo sh -c 'mv -n {directory}/[0-9]*-[0-9]* {spool.path}/' && sudo tattle flush"
        yield Finding("rejected", ERROR, message, f"to send them again: {back}")
    if others:
        message = f"{count(others, 'file')} of another kind in {directory}"
        yield Finding("rejected", WARNING, message, f"look at it, then: sudo rm -r {others[0]}")
    if not names and spool.path == PATH:
        yield Finding("rejected", OK, NOTHING_REJECTED)


def elsewhere(spool: Records) -> Iterator[Finding]:
    """Look at what came with a disk image: records that another machine accepted."""
    directory = f"{spool.path}/{ELSEWHERE}"
    names = os.listdir(directory) if os.path.isdir(directory) else []
    if names:
        message = f"{count(names, 'event')} of another machine, from whose image this one was made"
        yield Finding("elsewhere", WARNING, message, f"sudo rm -r {directory}")
    elif spool.path == PATH:
        yield Finding("elsewhere", OK, NOTHING_ELSEWHERE)
