"""`tattle flush`: have what waits delivered now, by this process or the deliverer at work."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from tattle.delivery import fault
from tattle.delivery.config import load
from tattle.delivery.deliver import BATCH, Deliverer
from tattle.delivery.watchdog import Heartbeat, Watch
from tattle.errors import TattleError
from tattle.login.hook import start_deliverer
from tattle.login.spool import EMERGENCY_PATH, PATH, WAKE, Spool

CHUNK = 10 * BATCH  # records between two words on the progress
POLL_SECONDS = 0.1  # between two looks at what another process delivers


def flush(progress: Callable[[int, int], None]) -> tuple[int, int, TattleError | None]:
    """Return how many were delivered, how many remain, and what keeps those back.

    progress is called with both numbers on the way. Raises TattleError if the spool is of no use.
    """
    load()  # what is wrong there keeps a deliverer waiting, too
    delivered = remaining = 0
    error: TattleError | None = None
    for path in (PATH, EMERGENCY_PATH):
        if path == PATH or os.path.isdir(path):
            try:
                spool = Spool(path)
            except OSError as cause:
                raise TattleError(
                    f"can't use {path}: {cause.strerror}", os.EX_UNAVAILABLE, "sudo tattle check"
                ) from cause
            gone, left, why = _flush(spool, progress)
            delivered, remaining, error = delivered + gone, remaining + left, error or why
    return delivered, remaining, error


def _flush(
    spool: Spool, progress: Callable[[int, int], None]
) -> tuple[int, int, TattleError | None]:
    names = set(spool.waiting())
    watch = Watch(spool)
    began = time.time()
    if names and not spool.lock():
        os.close(os.open(WAKE, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=spool.fd))
        while (left := names & set(spool.waiting())) and not watch.take_over():
            progress(len(names) - len(left), len(left))
            last = fault.last(spool)
            if last and last.time > began:
                delivered = len(names) - len(left)
                return delivered, len(left), TattleError(last.message, os.EX_TEMPFAIL, last.advice)
            time.sleep(POLL_SECONDS)
    others = len(names) - len(names & set(spool.waiting()))
    if not spool.lock():
        return others, len(spool.waiting()), None
    with Heartbeat([spool]) as heartbeat:
        deliverer = Deliverer([spool], heartbeat)
        error = None
        while (waiting := deliverer.waiting()) and not error:
            error = deliverer.deliver(waiting[:CHUNK])
            progress(others + deliverer.delivered, len(waiting))
        if error:
            fault.keep(spool, error, len(deliverer.waiting()))
        else:
            deliverer.recovered(late=False)
    spool.unlock()
    remaining = len(spool.waiting())
    if remaining and os.path.isfile(sys.argv[0]):
        start_deliverer(spool)  # it tries on, and has what was accepted in the meantime
    return others + deliverer.delivered, remaining, error
