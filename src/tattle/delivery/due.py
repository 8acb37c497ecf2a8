"""What is due, and when it is tried again. Pure: clock and names in, names out.

Times are seconds of a clock that is never set, time.monotonic().
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tattle.errors import TattleError

FIRST_PAUSE = 1.0  # seconds: the upper end of the first jitter
LONGEST_PAUSE = 60.0  # seconds
# Seconds until what may have arrived is sent again; then twice as long, and so on. Within
# GIVE_UP_AFTER that makes five copies at most, after 0, 60, 180, 420 and 900 s.
RESEND_AFTER = 60.0
GIVE_UP_AFTER = 15 * 60.0  # seconds without a success until records wait for the next hook or flush
RECORD_WAKES_AFTER = 5.0  # seconds of a pause, so that a busy host doesn't try with every login

Uniform = Callable[[float, float], float]


class Outcome(NamedTuple):
    """What became of an attempt to send some records."""

    delivered: int = 0
    refusal: TattleError | None = None  # why some, or all that were left, were not taken
    unanswered: tuple[str, ...] = ()  # records that may have arrived
    unanswered_error: TattleError | None = None  # the error of those

    def plus(self, later: Outcome) -> Outcome:
        """Return what became of these records and of others, of whose errors the later ones."""
        return Outcome(
            self.delivered + later.delivered,
            later.refusal or self.refusal,
            self.unanswered + later.unanswered,
            later.unanswered_error or self.unanswered_error,
        )

    @property
    def error(self) -> TattleError | None:
        """What keeps events back, if anything does."""
        return self.refusal or self.unanswered_error


def backoff(uniform: Uniform) -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row: full jitter below what doubles."""
    longest = FIRST_PAUSE
    while True:
        yield uniform(0, longest)
        longest = min(2 * longest, LONGEST_PAUSE)


class Resend(NamedTuple):
    """When a record that may have arrived is sent again."""

    first: float  # when it got no answer for the first time
    due: float  # math.inf: not by this deliverer
    pause: float


class Due:
    """The state of trying: a pause that is everybody's, and one for each unanswered record."""

    def __init__(self, now: float, uniform: Uniform = random.uniform) -> None:
        self._uniform = uniform
        self._success = now
        self._silent_attempts = 0  # in a row
        self._resend: dict[str, Resend] = {}
        self.try_all()

    def try_all(self) -> None:
        """Make everything due: somebody asked for it."""
        self._resend.clear()
        self._resume()

    def _resume(self) -> None:
        self._pauses = backoff(self._uniform)
        self._pause = (-math.inf, -math.inf)  # its begin and end
        self._newest = ""  # the newest record at its begin

    def names(self, waiting: list[str], now: float) -> list[str]:
        """Return those that are due, oldest first, of the sorted names that wait."""
        if now < self._pause_end(waiting):
            return []
        return [name for name in waiting if self._due(name) <= now]

    def seconds(self, waiting: list[str], now: float) -> float:
        """Return the seconds until one of them is due: math.inf if none ever is."""
        first = min(map(self._due, waiting), default=math.inf)
        return max(first, self._pause_end(waiting)) - now

    def note(self, outcome: Outcome, waiting: list[str], now: float) -> None:
        """Note what became of an attempt to send some of those that waited when it began."""
        self._resend = {name: self._resend[name] for name in waiting if name in self._resend}
        for name in outcome.unanswered:
            self._resend[name] = self._later(self._resend.get(name), now)
        if outcome.delivered:
            self._success, self._silent_attempts = now, 0
            self._resume()
        if outcome.unanswered:
            self._silent_attempts += 1
        # One answer that is lost says nothing about EventBridge; a second one in a row does.
        if outcome.refusal or self._silent_attempts > 1:
            self._pause = (now, now + next(self._pauses))
            self._newest = max(waiting, default="")

    def gives_up(self, waiting: list[str], now: float) -> bool:
        """Tell whether what waits is left to the next login, logout or flush."""
        if any(self._due(name) < math.inf for name in waiting):
            return now - self._success > GIVE_UP_AFTER
        return bool(waiting)

    def _due(self, name: str) -> float:
        return self._resend[name].due if name in self._resend else -math.inf

    def _pause_end(self, waiting: list[str]) -> float:
        begin, end = self._pause
        woken = begin + RECORD_WAKES_AFTER
        newer = bool(waiting) and waiting[-1] > self._newest
        return min(end, woken) if newer else end

    @staticmethod
    def _later(before: Resend | None, now: float) -> Resend:
        if before is None:
            return Resend(now, now + RESEND_AFTER, RESEND_AFTER)
        if now - before.first >= GIVE_UP_AFTER:
            return before._replace(due=math.inf)
        pause = 2 * before.pause
        return Resend(before.first, now + pause, pause)
