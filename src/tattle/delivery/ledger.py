"""The ledger: which sessions are open, so that each `opened` that was sent gets its `closed`.

`open/` in a spool holds a file for each session, named BOOT.PID.START (session_name()): the
record of its `opened`, moved there once EventBridge has it, and in its place that of its `closed`,
until its process is gone. Where the process is gone and there is no `closed`, the ledger makes one.

No login waits for any of this.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

from tattle.delivery.records import ELSEWHERE, OPEN, Records, new_record
from tattle.errors import TattleError, log
from tattle.login.pam import Session, parse
from tattle.login.spool import REJECTED, is_record

# Ids are below 2^22 (proc(5), pid_max); start times have 64 bits.
SESSION_NAME = re.compile(r"([0-9A-Za-z-]{1,40})\.([0-9]{1,7})\.([0-9]{1,20})")
SINCE = ".since"  # in `open/`; in it: nanoseconds since the epoch at which this ledger began
# Their sessions are opened by the process that becomes the service, and closed by its child
# `(sd-pam)`: systemd, src/core/exec-invoke.c, setup_pam(). The two events have no name in common.
CLOSED_BY_ANOTHER_PROCESS = ("systemd-user", "systemd-run0")
LOOK_SECONDS = 60.0  # at least, between two looks at the sessions: look.py
SETTLE_SECONDS = 0.2  # by which a hook may outlive its session's process
COPIED_TO_CLOSED = ("TATTLE_PARENT", "TATTLE_PARENT_START", "TATTLE_HOST", "TATTLE_INSTANCE")

# The start time of the process with that id, in clock ticks since boot (proc(5)); "" if there is
# none, None if that is not known.
StartOf = Callable[[int], Optional[str]]


class Machine(NamedTuple):
    """This machine, as the hook has it; "" for what is not known."""

    boot: str  # the id of this run
    instance: str


def session_name(session: Session) -> str | None:
    """Return BOOT.PID.START: the run of the machine and the process that the session is.

    None if the hook could not tell, or if that looks otherwise and may be no file's name.
    """
    parts = ("TATTLE_BOOT", "TATTLE_PARENT", "TATTLE_PARENT_START")
    name = ".".join(session.context.get(part, "") for part in parts)
    return name if SESSION_NAME.fullmatch(name) else None


def begin(spool: Records) -> None:
    """Begin a ledger, if there is none, or the clock has been set back since. Raises OSError."""
    if (since(spool) or math.inf) <= time.time():
        return
    # 1.1 moves `open/` there if an upgrade is taken back: it must be able to do so again.
    _move(spool, f"{REJECTED}/{OPEN}", f"{REJECTED}/{OPEN}-{time.time_ns()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(OPEN, 0o700, dir_fd=spool.fd)
    spool.write(f"{OPEN}/{SINCE}", b"%d" % time.time_ns(), durable=True)


def since(spool: Records) -> float | None:
    """Return the seconds since the epoch at which this ledger began; None if there is none.

    A session that is older may have been reported by a tattle without a ledger.
    """
    try:
        return int(spool.read(f"{OPEN}/{SINCE}")) / 1e9
    except (OSError, ValueError):
        return None


def names(spool: Records) -> list[str]:
    """Return the names of the sessions in a spool's ledger. Raises OSError."""
    try:
        found = os.listdir(_path(spool, OPEN))
    except FileNotFoundError:
        return []
    return [name for name in found if not name.startswith(".")]


def put_away(spools: Sequence[Records], spool: Records, sent: Mapping[str, Session]) -> None:
    """Move a spool's records that EventBridge has to its ledger; durably.

    spools: all that have a ledger. Raises OSError. It may then be called again with the same
    records.
    """
    begin(spool)
    for record, session in sent.items():
        name = session_name(session)
        if name is None or session.pam.get("PAM_SERVICE") in CLOSED_BY_ANOTHER_PROCESS:
            _unlink(spool, record)
        elif session.state == "opened" and _state(spools, name) == "closed":
            _unlink(spool, record)  # its `closed` was quicker
        else:
            # A `closed` takes the place of its `opened` in one step: a crash leaves either a record
            # that is sent again, or a session that has its `closed`.
            _move(spool, record, f"{OPEN}/{name}")
    # The new name first: a power cut must not leave the ledger without what the spool has lost.
    spool.sync([OPEN])


def ended(open_names: Iterable[str], boot: str, start_of: StartOf) -> list[str]:
    """Return the names of those sessions whose process is gone.

    boot is this machine's boot id: if that is not known, nothing is.
    """
    gone = []
    for name in open_names if boot else ():
        if found := SESSION_NAME.fullmatch(name):
            boot_then, pid, start = found.groups()
            now = start_of(int(pid)) if boot_then == boot else ""
            if now is not None and now != start:
                gone.append(name)
    return gone


def closed_record(opened: bytes, now: int) -> bytes:
    """Return the record of the `closed` of a session, from that of its `opened`.

    now: nanoseconds since the epoch. What only a hook knows at the end, such as the uptime that
    the duration is made of, is left out. Raises TattleError if that is no record.
    """
    session = parse(opened)
    variables = {
        **session.pam,
        "PAM_TYPE": "close_session",
        "TATTLE_TIME": str(now),
        **{name: session.context[name] for name in COPIED_TO_CLOSED if name in session.context},
        "TATTLE_REPORTED_BY": "process",
    }
    return new_record(variables, session.context.get("TATTLE_BOOT", ""))


def close_ended(spools: Sequence[Records], machine: Machine, start_of: StartOf) -> None:
    """Accept a `closed` for each session that has ended without one.

    Sessions that are over and have their `closed` leave the ledger. Raises OSError.
    """
    # First the process, then the spool. A hook runs as a child of the session's process, which
    # waits for it: if the process is gone, what its hook wrote is there. Asked the other way round,
    # the hook could write in between.
    gone = {name: spool for spool in spools for name in ended(names(spool), machine.boot, start_of)}
    if not gone:
        return
    closed = {name for name in gone if _state(spools, name) != "opened"}
    if len(closed) < len(gone):
        time.sleep(SETTLE_SECONDS)  # a killed process does not wait for its hook
    waiting = waiting_sessions(spools)
    for name, spool in gone.items():
        if name in closed:
            if (name, "opened") not in waiting:  # else that would look like an open session
                for each in spools:
                    _unlink(each, f"{OPEN}/{name}")
        elif (name, "closed") not in waiting:
            _close(spools, spool, name, machine)


def accept(spools: Sequence[Records], record: bytes) -> None:
    """Store a record in the first spool that takes it, and have it on disk. Raises OSError."""
    for spool in spools:
        try:
            name = spool.accept(record)
        except OSError as error:
            full = error
            continue
        with contextlib.suppress(OSError):  # raised, it would be accepted once more
            spool.sync([name])
        return
    raise full


def waiting_sessions(spools: Sequence[Records]) -> set[tuple[str, str]]:
    """Return name and state of the sessions whose records may yet be sent, rejected ones too.

    Raises OSError.
    """
    found = set()
    for spool, directory in itertools.product(spools, (".", REJECTED)):
        try:
            records = filter(is_record, os.listdir(_path(spool, directory)))
        except FileNotFoundError:
            continue
        for record in records:
            with contextlib.suppress(OSError, TattleError):  # sent meanwhile; no record
                session = parse(spool.read(f"{directory}/{record}"))
                found.add((session_name(session) or "", session.state))
    return found


def _close(spools: Sequence[Records], spool: Records, name: str, machine: Machine) -> None:
    """Accept a session's `closed`, unless one was sent while we looked or it is not ours."""
    try:
        opened = spool.read(f"{OPEN}/{name}")
        session = parse(opened)
    except (FileNotFoundError, TattleError):
        return
    instance = session.context.get("TATTLE_INSTANCE", "")
    if session.state != "opened" or (instance and not machine.instance):
        return
    if instance and instance != machine.instance:
        if spool.move(f"{OPEN}/{name}", ELSEWHERE):
            log(f"{spool.path}/{ELSEWHERE}/{name}: a session of {instance}, not of this machine")
        return
    accept(spools, closed_record(opened, time.time_ns()))


def _state(spools: Sequence[Records], name: str) -> str:
    """Return the state of a session in the ledgers; "" if it is in none."""
    states = set()
    for spool in spools:
        # A power cut may leave a name without the bytes. Nobody knows then whose it was.
        with contextlib.suppress(OSError, TattleError):
            states.add(parse(spool.read(f"{OPEN}/{name}")).state)
    return min(states, default="")  # "closed", if a spool has it


def _move(spool: Records, old: str, new: str) -> None:
    """Move a file within a spool, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):  # an earlier try did, and then failed
        os.rename(old, new, src_dir_fd=spool.fd, dst_dir_fd=spool.fd)


def _unlink(spool: Records, path: str) -> None:
    """Remove a file, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=spool.fd)


def _path(spool: Records, path: str) -> str:
    """Return a path that leads through the spool's descriptor: it can't be exchanged under us."""
    return f"/proc/self/fd/{spool.fd}/{path}"
