"""Says what keeps events back, and that nothing does any longer: beside them and in the log."""

from __future__ import annotations

import re

from tattle.delivery import last_error
from tattle.delivery.due import Outcome
from tattle.delivery.queue import Queue
from tattle.delivery.records import LATE_SECONDS
from tattle.errors import TattleError, log


class Reporter:
    """What one deliverer has said."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._error: TattleError | None = None
        self._late = False
        self._delivered = 0

    def note_attempt(self, outcome: Outcome, gave_up: bool, tried: float, oldest: float) -> None:
        """Note an attempt to send, and log its error, the same one once.

        tried: when it began; oldest: when its oldest record was accepted; seconds since the epoch.
        """
        self._late = self._late or tried - oldest > LATE_SECONDS
        self._delivered += outcome.delivered
        error = outcome.error
        if error is None:
            return
        if self._error is None:
            self._delivered = 0  # what had not waited
        if self.is_news(error):
            log(f"events wait in the spool: {error}")
        self._error = error
        for spool in self.queue.spools:
            last_error.write(spool, error, gave_up, tried)

    def is_news(self, error: TattleError) -> bool:
        """Tell whether an error is another one than the last; numbers change with every try."""
        return self._error is None or without_digits(error) != without_digits(self._error)

    def nothing_waits(self) -> None:
        """Forget the error, and log that events are delivered again."""
        if self._error or self._late:
            log(f"delivering again: {self._delivered} events that had waited are sent")
        self._error, self._late, self._delivered = None, False, 0
        for spool in self.queue.spools:
            last_error.remove(spool)


def without_digits(error: TattleError) -> str:
    """Return an error's message without what changes with every try, such as a time."""
    return re.sub("[0-9]+", "", str(error))
