"""A look at the sessions of this machine: what no hook reported is accepted as a hook would do it.

That is the `closed` of a session whose process is gone, and the `opened` of one that logind knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import re
import time
from collections.abc import Iterator, Sequence

from tattle.delivery import ledger, witness
from tattle.delivery.ledger import CLOSED_BY_ANOTHER_PROCESS, LOOK_SECONDS, Machine
from tattle.delivery.records import OPEN, Records
from tattle.errors import log
from tattle.event.pamd import Stack
from tattle.login import process
from tattle.login.spool import PATH

LOOKED = f"{OPEN}/.looked"  # locked by who looks; modified at the last look


def look(spools: Sequence[Records]) -> None:
    """Accept what no hook reported.

    At most once a minute, by whoever comes first. What can't be found out now, a later look finds:
    raises nothing.
    """
    # In one order, whoever looks: they must lock the same file.
    spools = sorted(spools, key=lambda spool: spool.path != PATH)
    try:
        for spool in spools:
            ledger.begin(spool)
        with claim_look(spools[0]) as due:
            if due:
                machine = this_machine()
                ledger.close_ended(spools, machine, start_of)
                report_unreported(spools, machine)
    except OSError as error:
        log(f"can't look for sessions that were not reported: {error}")


@contextlib.contextmanager
def claim_look(spool: Records) -> Iterator[bool]:
    """Lock out whoever else would look; give whether it is time to look. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    fd = os.open(LOOKED, flags, 0o600, dir_fd=spool.fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            due = False
        else:
            status = os.fstat(fd)
            due = not status.st_size or abs(time.time() - status.st_mtime) >= LOOK_SECONDS
        if due:
            os.pwrite(fd, b"\n", 0)  # also sets the time
        yield due
    finally:
        os.close(fd)


def this_machine() -> Machine:
    """Return what identifies this machine, and this run of it."""
    facts = dict(fact.decode(errors="replace").partition("=")[::2] for fact in process.machine())
    return Machine(process.boot_id().decode(), facts.get("TATTLE_INSTANCE", ""))


def start_of(pid: int) -> str | None:
    """Return when a process started: ledger.StartOf. One that has ended and was not waited for is
    none any more."""
    try:
        state, *fields = process.stat_fields(pid)
        return "" if state in (b"Z", b"X") else fields[18].decode()
    except (OSError, ValueError, IndexError):
        try:
            os.kill(pid, 0)  # /proc may hide it: hidepid=, proc(5)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
    return None


def report_unreported(spools: Sequence[Records], machine: Machine) -> None:
    """Accept an `opened` for each session that logind knows and nobody reported.

    Raises OSError.
    """
    sessions = witness.logind_sessions()
    if sessions is None and os.path.isdir(witness.LOGIND):  # any user may keep it busy
        log("systemd-logind does not answer: sessions that PAM did not report are not seen")
    if not sessions or not machine.boot:
        return
    began = min(filter(None, map(ledger.since, spools)), default=math.inf)
    clocks = witness.Clocks(
        time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), machine.boot
    )
    stack_since = functools.partial(reported_since, began)
    known = {name for spool in spools for name in ledger.names(spool)}
    found = [*witness.unreported(sessions, known, start_of, clocks, stack_since)]
    if not found:
        return
    # `open/` once more, and last: records move there from the spool while we look.
    known = {name for name, _ in ledger.waiting_sessions(spools)}
    known |= {name for spool in spools for name in ledger.names(spool)}
    found = [one for one in found if one.name not in known]
    for one in found:
        ledger.accept(spools, witness.opened_record(one, process.machine()))
        log(witness.log_line(one))


def reported_since(began: float, service: str, root: str = "") -> float:
    """Return the seconds since the epoch from which on hooks report a service's sessions.

    Not before the ledger began, nor before the last change of what its stack is made of; math.inf
    if that does not run tattle, or the ledger does not keep its sessions.
    """
    if service in CLOSED_BY_ANOTHER_PROCESS or not re.fullmatch(r"[\w-]+", service):
        return math.inf
    try:
        stack = Stack(service, root)
        if not any(line.kind == "session" for line, _ in stack.hooks()):
            return math.inf
        paths = [root + path for file in stack.files for path in (file, os.path.dirname(file))]
        return max(began, *(os.stat(path).st_ctime for path in paths if os.path.exists(path)))
    except OSError:
        return math.inf
