"""When a deliverer tries, and tries again; and what that means to EventBridge after an outage."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from tattle.delivery.due import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    RECORD_WAKES_AFTER,
    Due,
    Outcome,
    backoff,
)
from tattle.errors import TattleError, Unanswered

FLEET = 10_000
QUOTA = 400  # PutEvents requests a second, the lowest default of a region:
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html
REFUSED = TattleError("throttled", 75)
SILENCE = Unanswered("cut")


def longest(low: float, high: float) -> float:
    assert low == 0
    return high


def unanswered(*names: str, delivered: int = 0) -> Outcome:
    return Outcome(delivered, None, names, SILENCE)


class TestBackoff:
    def test_pauses_are_random_below_what_doubles_to_a_minute(self) -> None:
        pauses = [*itertools.islice(backoff(longest), 9)]
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert (pauses[0], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
        assert [*itertools.islice(backoff(lambda low, high: low), 9)] == [0] * 9

    def test_a_fleet_that_gets_eventbridge_back_does_not_take_it_away_again(self) -> None:
        """All lost it at the same moment. The first call of each after ten minutes would be a
        second outage if they came at once: they stay below the quota, and all have come after a
        minute. The jitter is the one that is built in."""
        random.seed(1)
        returned = 600.0
        calls: Counter[int] = Counter()
        for _ in range(FLEET):
            due, now = Due(0.0), 0.0
            while now < returned:
                due.note(Outcome(refusal=REFUSED), ["a"], now)
                now += max(due.seconds(["a"], now), 0.001)
            calls[int(now - returned)] += 1
        assert max(calls.values()) < QUOTA
        assert max(calls) <= LONGEST_PAUSE


class TestAfterARefusal:
    def test_everything_pauses(self) -> None:
        due = Due(0.0, longest)
        for begin, pause in ((0, 1), (1, 2), (3, 4)):
            due.note(Outcome(refusal=REFUSED), ["a", "b"], begin)
            assert due.names(["a", "b"], begin + pause - 0.1) == []
            assert due.seconds(["a", "b"], begin) == pause
            assert due.names(["a", "b"], begin + pause) == ["a", "b"]

    def test_a_success_makes_the_next_pause_short_again(self) -> None:
        due = Due(0.0, longest)
        for now in range(4):
            due.note(Outcome(refusal=REFUSED), ["a", "b"], now)
        due.note(Outcome(delivered=1, refusal=REFUSED), ["a", "b"], 20)
        assert due.seconds(["b"], 20) == FIRST_PAUSE

    def test_a_newer_record_cuts_a_long_pause_short(self) -> None:
        due = Due(0.0, longest)
        for _ in range(6):
            due.note(Outcome(refusal=REFUSED), ["a", "b"], 0)
        assert due.seconds(["a", "b"], 0) == due.seconds(["a"], 0) == 32
        assert due.seconds(["a", "b", "c"], 0) == RECORD_WAKES_AFTER
        assert due.names(["a", "c"], RECORD_WAKES_AFTER) == ["a", "c"]

    def test_somebody_who_asks_ends_it(self) -> None:
        due = Due(0.0, longest)
        due.note(Outcome(refusal=REFUSED), ["a"], 0)
        due.note(unanswered("b"), ["b"], 0)
        due.try_all()
        assert due.names(["a", "b"], 0) == ["a", "b"]


class TestAfterALostAnswer:
    def test_only_the_records_that_may_have_arrived_wait(self) -> None:
        due = Due(0.0, longest)
        due.note(unanswered("a"), ["a", "b"], 0)
        assert due.names(["a", "b", "c"], 0) == ["b", "c"]
        assert due.names(["a", "b"], 59.9) == ["b"]
        assert due.names(["a"], 60) == ["a"]

    @pytest.mark.parametrize("began", [0.0, 5000.0])
    @pytest.mark.parametrize("late", [0.0, 1.0])
    def test_they_are_sent_five_times_in_a_quarter_of_an_hour_and_then_left_to_the_next(
        self, began: float, late: float
    ) -> None:
        due, now, sent = Due(began, longest), began, []
        while not due.gives_up(["a"], now):
            assert due.names(["a"], now) == ["a"]
            sent.append(now - began)
            due.note(unanswered("a", delivered=1), ["a"], now)
            now += max(0.0, min(due.seconds(["a"], now), 1e6)) + late
        assert sent == [at + n * late for n, at in enumerate([0, 60, 180, 420, 900])]

    @pytest.mark.parametrize("silent", [1, 2])
    def test_a_second_one_in_a_row_is_an_outage(self, silent: int) -> None:
        due = Due(0.0, longest)
        names = ["a", "b", "c"]
        due.note(Outcome(delivered=1), ["0", *names], 0)
        assert due.names(names, 0) == names
        for name in names[:silent]:
            due.note(unanswered(name), names, 0)
        assert due.names(names, 0) == ([] if silent == 2 else ["b", "c"])
        assert due.names(names, FIRST_PAUSE) == names[silent:]

    def test_two_with_an_answer_between_them_are_none(self) -> None:
        due = Due(0.0, longest)
        due.note(unanswered("a"), ["a", "b", "c", "d"], 0)
        due.note(unanswered("c", delivered=1), ["a", "b", "c", "d"], 0)
        assert due.names(["a", "c", "d"], 0) == ["d"]

    def test_a_refusal_beside_it_does_not_bring_it_back(self) -> None:
        due = Due(0.0, longest)
        due.note(Outcome(0, REFUSED, ("a",), SILENCE), ["a", "b"], 0)
        assert due.names(["a", "b"], FIRST_PAUSE) == ["b"]
        due.note(Outcome(refusal=REFUSED), ["a", "b"], 1)
        assert due.names(["a", "b"], 59) == ["b"]


class TestGivingUp:
    def test_after_a_quarter_of_an_hour_without_success(self) -> None:
        due = Due(0.0, longest)
        due.note(Outcome(refusal=REFUSED), ["a"], 0)
        assert not due.gives_up(["a"], 15 * 60)
        assert due.gives_up(["a"], 15 * 60 + 1)
        due.note(Outcome(delivered=1, refusal=REFUSED), ["a"], 800)
        assert not due.gives_up(["a"], 15 * 60 + 1)

    def test_nothing_that_waits_is_nothing_to_give_up(self) -> None:
        due = Due(0.0, longest)
        assert not due.gives_up([], 10.0)
        assert due.seconds([], 0) == math.inf
