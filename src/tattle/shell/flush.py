"""`tattle flush`: have the deliverer try now, and say how that went.

It sends nothing itself: a flush that is stopped or killed holds up nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tattle.delivery import last_error
from tattle.delivery.lock import is_of_1_0, is_of_1_1
from tattle.delivery.look import look
from tattle.delivery.records import ELSEWHERE, WAKE, Records
from tattle.errors import TattleError
from tattle.login.hook import start_deliverer
from tattle.login.spool import EMERGENCY_PATH, PATH, REJECTED

POLL_SECONDS = 0.1  # between two looks at what the deliverer has done
START_SECONDS = 2.0  # for a deliverer to start, until there is to be another
LINE_SECONDS = 10.0  # between two lines on the progress, where they can't be rewritten
# Longer than the deliverer takes for a call, or to be taken for dead and replaced
STUCK_SECONDS = 180.0
DELIVERED = "delivered"
ASIDE = {REJECTED: "rejected", ELSEWHERE: "of another machine"}  # what a directory holds


def main() -> int:
    """Have delivered what waits now. Raises TattleError if something stays, and why."""
    sys.argv[0] = os.path.abspath(sys.argv[0])  # the deliverer starts in another directory
    spools, unusable = open_spools()
    with contextlib.suppress(OSError):
        # They tell no ledger what they send: what is not in it may be reported all the same.
        if spools and not any(is_of_1_0(spool) or is_of_1_1(spool) for spool in spools):
            look(spools)  # at sessions that were not reported
    backlogs = []
    for spool in spools:
        try:
            backlogs.append(Backlog(spool))
        except TattleError as error:
            unusable = unusable or error
    cause = watch(backlogs)
    gone, left = totals(backlogs)
    if backlogs:
        moved = [f", {gone[what]} {what}" for what in ASIDE.values() if gone[what]]
        print(f"{gone[DELIVERED]} delivered, {left} remain{''.join(moved)}", flush=True)
    if left and cause:
        raise cause
    if unusable:  # what can be done is done by now
        raise unusable
    return 0


class Backlog:
    """What waited in a spool when the flush began, and what became of it."""

    def __init__(self, records: Records) -> None:
        """Have the deliverer try now. Raises TattleError."""
        self.records = records
        self.gone: Counter[str] = Counter()  # by what became of it
        with unavailable(f"can't write to {records.path}"):
            self.left = {*records.names()}
            if self.left:
                flags = os.O_WRONLY | os.O_CREAT
                os.close(os.open(WAKE, flags, 0o600, dir_fd=records.fd))

    def start(self) -> None:
        """Start a deliverer, unless there is a standby: it may have died. Raises TattleError."""
        if self.left:
            with unavailable("can't start a deliverer", os.EX_TEMPFAIL):
                start_deliverer(self.records)

    def update(self) -> bool:
        """Count what has been delivered since the last time; tell whether anything has."""
        gone = self.left - {*self.records.names()}
        self.left -= gone
        for name in gone:
            moved = [what for path, what in ASIDE.items() if self.records.holds(f"{path}/{name}")]
            self.gone[moved[0] if moved else DELIVERED] += 1
        return bool(gone)

    def cause(self) -> TattleError | None:
        """Return what has kept events back since the deliverer saw that it is to try now."""
        if not self.left or self.records.holds(WAKE):
            return None
        last = last_error.read(self.records)
        return last and TattleError(last.message, os.EX_TEMPFAIL, last.advice)


@contextlib.contextmanager
def unavailable(what: str, status: int = os.EX_UNAVAILABLE) -> Iterator[None]:
    """Turn an OSError into an error that says what can't be done."""
    try:
        yield
    except OSError as error:
        raise TattleError(f"{what}: {error.strerror}", status, "sudo tattle check") from error


def open_spools() -> tuple[list[Records], TattleError | None]:
    """Return the spools, and why one of them can't be used, if that is so."""
    spools, unusable = [], None
    for path in (PATH, EMERGENCY_PATH):
        if path == PATH or os.path.isdir(path):
            try:
                with unavailable(f"can't use {path}"):
                    spools.append(Records(path))
            except TattleError as error:
                unusable = unusable or error
    return spools, unusable


def totals(backlogs: list[Backlog]) -> tuple[Counter[str], int]:
    """Return how many records became what, and how many are left."""
    gone = sum((backlog.gone for backlog in backlogs), Counter[str]())
    return gone, sum(len(backlog.left) for backlog in backlogs)


def watch(backlogs: list[Backlog]) -> TattleError | None:
    """Watch until nothing is left; return why something is. Raises TattleError."""
    changed = said = time.monotonic()
    started = -START_SECONDS
    cause = None
    while any(backlog.left for backlog in backlogs) and not cause:
        now = time.monotonic()
        if now - started > START_SECONDS:
            started = now
            for backlog in backlogs:
                backlog.start()
        cause = next(filter(None, [backlog.cause() for backlog in backlogs]), None)
        updated = [backlog.update() for backlog in backlogs]
        if any(updated):
            changed = now
        if now - changed > STUCK_SECONDS and not cause:
            message = f"nothing was delivered for {STUCK_SECONDS:.0f} s, and no reason given"
            cause = TattleError(message, os.EX_TEMPFAIL, "see the log: journalctl -t tattle")
        if sys.stderr.isatty() or now - said > LINE_SECONDS:
            said = now
            gone, left = totals(backlogs)
            show_progress(f"{gone[DELIVERED]} delivered, {left} remain …")
        time.sleep(POLL_SECONDS)
    if sys.stderr.isatty():
        show_progress("")
    return cause


def show_progress(text: str) -> None:
    """Print a line on standard error, on a terminal in place of the one before."""
    with contextlib.suppress(OSError):  # nobody listens any longer
        line = f"\r{text}\033[K" if sys.stderr.isatty() else f"{text}\n"
        print(line, end="", file=sys.stderr, flush=True)
