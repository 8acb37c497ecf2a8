"""The pauses between a deliverer's calls, and what they mean to EventBridge after an outage."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from tattle.delivery.deliver import FIRST_PAUSE, LONGEST_PAUSE, backoff

FLEET = 10_000
QUOTA = 400  # PutEvents requests a second, the lowest default of a region:
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html


def test_they_are_random_below_what_doubles_to_a_minute() -> None:
    longest = [*itertools.islice(backoff(lambda low, high: high), 9)]
    assert longest == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (longest[0], longest[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    assert [*itertools.islice(backoff(lambda low, high: low), 9)] == [0] * 9


def test_a_fleet_that_gets_eventbridge_back_does_not_take_it_away_again() -> None:
    """All lost it at the same moment. The first call of each after ten minutes would be a second
    outage if they came at once: they stay below the quota, and all have come after a minute."""
    random.seed(1)  # what nobody says: the pauses as a deliverer has them
    returned = 600.0
    calls: Counter[int] = Counter()
    for _ in range(FLEET):
        times = itertools.accumulate(backoff())
        calls[int(next(time for time in times if time >= returned) - returned)] += 1
    assert max(calls.values()) < QUOTA
    assert max(calls) <= LONGEST_PAUSE
