"""The last error: what keeps events back, kept beside them until they are delivered again."""

from __future__ import annotations

import contextlib
import json
from typing import NamedTuple

from tattle.delivery.records import LAST_ERROR, Records
from tattle.errors import TattleError
from tattle.login.process import boot_id


class LastError(NamedTuple):
    """What kept events back, and when that was last tried: seconds since the epoch."""

    time: float
    message: str
    advice: str
    gave_up: bool = False  # the deliverer, until the next login, logout or flush
    boot: str = ""  # the boot id: an image carries this file to other machines


def write(records: Records, error: TattleError, gave_up: bool, tried: float) -> None:
    """Write it down; where that fails, the log has it all the same."""
    last = LastError(tried, str(error), error.advice, gave_up, boot_id().decode())
    with contextlib.suppress(OSError):
        # Not durable: after a reboot it counts no longer.
        records.write(LAST_ERROR, json.dumps(last._asdict()).encode(), durable=False)


def read(records: Records) -> LastError | None:
    """Return what keeps events back now, if anything does; not what did before a reboot."""
    try:
        last = LastError(**json.loads(records.read(LAST_ERROR)))
    except (OSError, ValueError, TypeError):
        return None
    return last if last.boot == boot_id().decode() else None


def remove(records: Records) -> None:
    """Remove it: events are delivered again."""
    with contextlib.suppress(OSError):
        if records.holds(LAST_ERROR):
            records.remove([LAST_ERROR])
