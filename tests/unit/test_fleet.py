"""A fleet that gets EventBridge back does not take it away again: bench/fleet.py, simulated."""

from __future__ import annotations

import itertools
import random

import pytest

from bench.fleet import SWEEP_SECONDS, Outcome, every_second, simulate
from tattle.delivery.deliver import FIRST_PAUSE, GIVE_UP_AFTER, LONGEST_PAUSE, backoff

FLEET = 250
# For so few instances what 400 requests a second, the lowest default quota, are for 10,000.
QUOTA = 400 * FLEET / 10_000


def test_the_pauses_are_full_jitter_below_what_doubles_to_a_minute() -> None:
    uppermost = [*itertools.islice(backoff(lambda low, high: high), 9)]
    assert uppermost == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (uppermost[0], uppermost[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    assert [*itertools.islice(backoff(lambda low, high: low), 9)] == [0] * 9
    spread = [*itertools.islice(backoff(random.Random(1).uniform), 6, 1006)]
    assert sum(pause < LONGEST_PAUSE / 4 for pause in spread) == pytest.approx(250, abs=50)


@pytest.fixture(scope="module")
def hour() -> Outcome:
    return simulate(instances=FLEET, quota=QUOTA)


class TestAfterAnHourWithoutEventBridge:
    def test_its_return_is_no_second_outage(self, hour: Outcome) -> None:
        recovery = hour.scenario.recovery
        first_minute = hour.mean(recovery, recovery + 60)
        assert first_minute < QUOTA
        assert hour.mean(recovery, recovery + 60) < hour.mean(recovery - 600, recovery)
        assert hour.mean(recovery + 60, recovery + 120) < first_minute / 2
        assert hour.saturated_seconds() < 15

    def test_what_is_being_sent_has_arrived_after_two_minutes(self, hour: Outcome) -> None:
        assert hour.pending > FLEET / 2
        last = hour.drained(1)
        assert last is not None
        assert last < 2 * LONGEST_PAUSE

    def test_what_was_given_up_waits_for_the_next_login(self, hour: Outcome) -> None:
        assert 0 < hour.held < hour.pending * 2
        assert GIVE_UP_AFTER < 3600

    def test_a_tool_that_logs_in_everywhere_at_that_moment_changes_nothing(self) -> None:
        swept = simulate(instances=FLEET, quota=QUOTA, sweep=True)
        last = swept.drained(1)
        assert last is not None
        assert last < SWEEP_SECONDS + 2 * LONGEST_PAUSE
        assert swept.mean(swept.scenario.recovery + 120, swept.scenario.recovery + 180) < QUOTA / 2

    def test_a_tenth_of_the_quota_is_enough(self) -> None:
        scarce = simulate(instances=FLEET, quota=QUOTA / 10)
        most = scarce.drained(0.9)  # the others give up as always, and wait for a login
        assert most is not None
        assert most < 300

    def test_without_backoff_it_would_be_one(self) -> None:
        """The simulation can fail: this is what the assertions above are worth."""
        stubborn = simulate(
            instances=FLEET,
            quota=QUOTA,
            pauses=every_second,
            give_up_after=float("inf"),
            outage=600,
        )
        recovery = stubborn.scenario.recovery
        assert stubborn.mean(recovery - 60, recovery) > 2 * QUOTA
        assert stubborn.mean(recovery, recovery + 2) > 2 * QUOTA
        assert stubborn.saturated_seconds() > 2
