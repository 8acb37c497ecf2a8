"""The last fault: what keeps events back, kept beside them until they are delivered again."""

from __future__ import annotations

import contextlib
import json
import os
from typing import NamedTuple

from tattle.errors import TattleError
from tattle.login.spool import FAULT, FAULT_NEW, Spool


class Fault(NamedTuple):
    """What kept events back, and when that was last tried: seconds since the epoch."""

    time: float
    message: str
    advice: str
    waiting: int
    gave_up: bool = False  # the deliverer, until the next login, logout or flush


def keep(spool: Spool, error: TattleError, waiting: int, gave_up: bool, tried: float) -> None:
    """Keep it; where that can't be written, the log has it all the same."""
    fault = Fault(tried, str(error), error.advice, waiting, gave_up)
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(FAULT_NEW, flags, 0o600, dir_fd=spool.fd), "w") as file:
            json.dump(fault._asdict(), file)
        os.rename(FAULT_NEW, FAULT, src_dir_fd=spool.fd, dst_dir_fd=spool.fd)


def last(spool: Spool) -> Fault | None:
    """Return the fault that keeps events back now, if one does."""
    try:
        return Fault(**json.loads(spool.read(FAULT)))
    except (OSError, ValueError, TypeError):
        return None


def forget(spool: Spool) -> None:
    """Events are delivered again."""
    with contextlib.suppress(OSError):
        if spool.holds(FAULT):
            spool.remove([FAULT])
