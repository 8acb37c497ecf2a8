"""`tattle flush`: have the deliverer try now, and say how that went.

It sends nothing itself: a flush that is stopped or killed holds up nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from tattle.delivery import fault
from tattle.errors import TattleError
from tattle.login.hook import start_deliverer
from tattle.login.spool import EMERGENCY_PATH, PATH, REJECTED, WAKE, Spool

POLL_SECONDS = 0.1  # between two looks at what the deliverer has done
START_SECONDS = 2.0  # for a deliverer to start, until there is to be another
LINE_SECONDS = 10.0  # between two lines on the progress, where they can't be rewritten
# Longer than the deliverer takes for a call, or to be taken for dead and replaced
STUCK_SECONDS = 180.0


def main() -> int:
    """Have delivered what waits now. Raises TattleError if something stays, and why."""
    sys.argv[0] = os.path.abspath(sys.argv[0])  # the deliverer starts in another folder
    spools = open_spools()
    waiting = {spool: {*spool.waiting()} for spool in spools}
    for spool in spools:
        if waiting[spool]:
            try:
                os.close(os.open(WAKE, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=spool.fd))
            except OSError as error:
                message = f"can't write to {spool.path}: {error.strerror}"
                raise TattleError(message, os.EX_UNAVAILABLE, "sudo tattle check") from error
    left = sum(map(len, waiting.values()))
    delivered = rejected = 0
    cause = None
    progress = Progress()
    changed = time.monotonic()
    started = 0.0
    while left and not cause:
        starting = time.monotonic() - started > START_SECONDS
        started = time.monotonic() if starting else started
        for spool in spools:
            if waiting[spool]:
                if starting:
                    start(spool)  # unless there is a standby: the deliverer may have died
                cause = cause or reason(spool)
            gone = waiting[spool] - {*spool.waiting()}
            set_aside = sum(spool.holds(f"{REJECTED}/{name}") for name in gone)
            waiting[spool] -= gone
            left -= len(gone)
            rejected += set_aside
            delivered += len(gone) - set_aside
            changed = time.monotonic() if gone else changed
        if time.monotonic() - changed > STUCK_SECONDS:
            cause = cause or stuck()
        progress.show(delivered, left)
        time.sleep(POLL_SECONDS)
    progress.clear()
    aside = f", {rejected} set aside" if rejected else ""
    print(f"{delivered} delivered, {left} remain{aside}", flush=True)
    if left and cause:
        raise cause
    return 0


def open_spools() -> list[Spool]:
    """Return the spools. Raises TattleError if one can't be used."""
    spools = []
    for path in (PATH, EMERGENCY_PATH):
        if path == PATH or os.path.isdir(path):
            try:
                spools.append(Spool(path))
            except OSError as error:
                fault = f"can't use {path}: {error.strerror}"
                raise TattleError(fault, os.EX_UNAVAILABLE, "sudo tattle check") from error
    return spools


def start(spool: Spool) -> None:
    """Start a deliverer. Raises TattleError."""
    try:
        start_deliverer(spool)
    except OSError as error:
        fault = f"can't start a deliverer, the event waits for the next login: {error}"
        raise TattleError(fault, os.EX_TEMPFAIL, "sudo tattle check") from error


def reason(spool: Spool) -> TattleError | None:
    """Return what has kept events back since the deliverer saw that it is to try now."""
    if spool.holds(WAKE):
        return None
    found = fault.last(spool)
    return found and TattleError(found.message, os.EX_TEMPFAIL, found.advice)


def stuck() -> TattleError:
    """Return the error for a deliverer that neither delivers nor says why."""
    return TattleError(
        f"nothing was delivered for {STUCK_SECONDS:.0f} s, and no reason given",
        os.EX_TEMPFAIL,
        "see the log: journalctl -t tattle",
    )


class Progress:
    """Says on standard error how far it is: on a terminal in one line, which is rewritten."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr is not None and sys.stderr.isatty()
        self._said = time.monotonic()

    def show(self, delivered: int, left: int) -> None:
        """Say it, now and then."""
        text = f"{delivered} delivered, {left} remain …"
        if self._rewrites:
            self._write(f"\r{text}\033[K")
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            self._write(f"{text}\n")

    def clear(self) -> None:
        """Make room for the last line."""
        if self._rewrites:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any longer
            print(text, end="", file=sys.stderr, flush=True)
