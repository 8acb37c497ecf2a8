"""The last fault: what keeps events back, kept beside them until they are delivered again."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import NamedTuple

from tattle.errors import TattleError
from tattle.login.spool import FAULT, Spool


class Fault(NamedTuple):
    """What kept events back, and when that was last seen: seconds since the epoch."""

    time: float
    message: str
    advice: str
    waiting: int


def keep(spool: Spool, error: TattleError, waiting: int) -> None:
    """Keep it; where that can't be written, the log has it all the same."""
    fault = Fault(time.time(), str(error), error.advice, waiting)
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(FAULT, flags, 0o600, dir_fd=spool.fd), "w") as file:
            json.dump(fault._asdict(), file)


def last(spool: Spool) -> Fault | None:
    """Return the fault that keeps events back now, if one does."""
    try:
        return Fault(**json.loads(spool.read(FAULT)))
    except (OSError, ValueError, TypeError):
        return None  # there is none, or it is being written


def forget(spool: Spool) -> None:
    """Events are delivered again."""
    with contextlib.suppress(OSError):
        if spool.holds(FAULT):
            spool.remove([FAULT])
