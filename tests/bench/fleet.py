"""A fleet that loses EventBridge for an hour and gets it back, in simulation.

Is the return a second outage, with every instance asking at once? The pauses between calls are
the deliverer's own code; what is simulated is the time, the logins and a service that refuses what
exceeds its quota. Run by hand: `python tests/bench/fleet.py [INSTANCES]`.
"""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "src"))

from tattle.delivery.deliver import BATCH, GIVE_UP_AFTER, LINGER, backoff

INSTANCES = 10_000
# PutEvents requests a second, of an account in a region, by default:
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html
QUOTAS = {
    "us-east-1, us-west-2, eu-west-1": 10_000,
    "us-east-2, eu-central-1": 2_400,
    "ap-northeast-1, eu-west-2, …": 1_200,
    "ap-south-1, eu-north-1, …": 600,
    "the other regions": 400,
}
SESSIONS_PER_HOUR = 2.0  # of one instance
SESSION_SECONDS = 600.0  # the mean; lengths are spread exponentially
OUTAGE_BEGINS = 900.0  # seconds; until then the fleet settles
OUTAGE_SECONDS = 3600.0
AFTERWARDS_SECONDS = 1800.0
LOAD_SECONDS = 0.2  # until a fresh deliverer's first request
ANSWER_SECONDS = 0.02  # for any answer, a refusal too
SWEEP_SECONDS = 60.0  # in which a management tool logs in to every instance

Pauses = Callable[[random.Random], Iterator[float]]


def tattles(chance: random.Random) -> Iterator[float]:
    return backoff(chance.uniform)


def every_second(_: random.Random) -> Iterator[float]:
    """What a loop with `sleep 1` does, for comparison."""
    return itertools.repeat(1.0)


@dataclass
class Scenario:
    instances: int = INSTANCES
    quota: float = QUOTAS["the other regions"]
    sweep: bool = False
    """Whether a management tool logs in to every instance just as the service comes back."""
    pauses: Pauses = tattles
    give_up_after: float = GIVE_UP_AFTER
    outage: float = OUTAGE_SECONDS
    seed: int = 1

    @property
    def recovery(self) -> float:
        return OUTAGE_BEGINS + self.outage

    @property
    def end(self) -> float:
        return self.recovery + AFTERWARDS_SECONDS


@dataclass
class Instance:
    waiting: list[float] = field(default_factory=list)
    """When each record in the spool was accepted."""
    delivers: bool = False
    warm_until: float = -1.0
    """How long the last deliverer stays for another event."""
    held: bool = False
    """Whether its deliverer had given up by the recovery."""


@dataclass
class Outcome:
    scenario: Scenario
    asked: Counter[int] = field(default_factory=Counter)
    """Requests by second, and of these:"""
    refused: Counter[int] = field(default_factory=Counter)
    """… those that exceeded the quota."""
    pending: int = 0
    """Records that a deliverer was trying to send at the recovery."""
    held: int = 0
    """Records whose deliverer had given up by then: they wait for a login, a logout or a flush."""
    waited: list[float] = field(default_factory=list)
    """Seconds from the recovery to the delivery of each of the pending, sorted."""
    left: int = 0
    """Records that wait at the end."""

    def peak(self, begin: float, end: float) -> int:
        """The most requests in a second of that time."""
        return max((self.asked[second] for second in range(int(begin), int(end))), default=0)

    def mean(self, begin: float, end: float) -> float:
        """Requests a second in that time."""
        return sum(self.asked[s] for s in range(int(begin), int(end))) / (int(end) - int(begin))

    def refused_share(self) -> float:
        """Of the requests after the recovery."""
        later = range(int(self.scenario.recovery), int(self.scenario.end))
        return sum(self.refused[s] for s in later) / max(1, sum(self.asked[s] for s in later))

    def saturated_seconds(self) -> int:
        """Seconds after the recovery in which the quota was exceeded."""
        return sum(1 for second in self.refused if second >= self.scenario.recovery)

    def drained(self, share: float) -> float | None:
        """Seconds from the recovery until that share of the pending is delivered."""
        count = int(share * self.pending)
        return self.waited[count - 1] if 0 < count <= len(self.waited) else None


class Simulation:
    """Discrete events: a heap of processes by the time at which each goes on."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.chance = random.Random(scenario.seed)
        self.outcome = Outcome(scenario)
        self.fleet = [Instance() for _ in range(scenario.instances)]
        self.now = 0.0
        self.recovery = scenario.recovery
        self.tokens = scenario.quota
        self.filled = 0.0
        self.heap: list[tuple[float, int, Iterator[float]]] = []
        self.numbers = itertools.count()

    def run(self) -> Outcome:
        self.start(self.note_backlog(), self.scenario.recovery)
        for instance in self.fleet:
            first = self.chance.expovariate(SESSIONS_PER_HOUR / 3600)
            self.start(self.logins(instance), first)
            if self.scenario.sweep:
                moment = self.scenario.recovery + self.chance.uniform(0, SWEEP_SECONDS)
                self.start(self.session(instance, 5.0), moment)
        while self.heap and self.heap[0][0] < self.scenario.end:
            self.now, _, process = heapq.heappop(self.heap)
            for seconds in process:
                self.start(process, self.now + seconds)
                break
        self.outcome.waited.sort()
        self.outcome.left = sum(len(instance.waiting) for instance in self.fleet)
        return self.outcome

    def start(self, process: Iterator[float], moment: float) -> None:
        heapq.heappush(self.heap, (moment, next(self.numbers), process))

    # Processes: each yields the seconds until it goes on

    def logins(self, instance: Instance) -> Iterator[float]:
        while True:
            length = self.chance.expovariate(1 / SESSION_SECONDS)
            self.start(self.session(instance, length), self.now)
            yield self.chance.expovariate(SESSIONS_PER_HOUR / 3600)

    def session(self, instance: Instance, length: float) -> Iterator[float]:
        self.accept(instance)
        yield length
        self.accept(instance)

    def accept(self, instance: Instance) -> None:
        """What the hook does."""
        instance.waiting.append(self.now)
        if not instance.delivers:
            instance.delivers = True
            load = 0.0 if self.now < instance.warm_until else LOAD_SECONDS
            self.start(self.deliver(instance), self.now + load)

    def deliver(self, instance: Instance) -> Iterator[float]:
        """What Deliverer.run() does."""
        success, pauses = self.now, self.scenario.pauses(self.chance)
        while instance.waiting:
            yield ANSWER_SECONDS
            if self.ask():
                self.note_delivery(instance)
                del instance.waiting[:BATCH]
                success, pauses = self.now, self.scenario.pauses(self.chance)
                continue
            if self.now - success > self.scenario.give_up_after:
                break
            yield next(pauses)
        instance.delivers = False
        instance.warm_until = self.now + LINGER if not instance.waiting else -1.0

    # The service

    def ask(self) -> bool:
        """One PutEvents request; tell whether it succeeded."""
        second = int(self.now)
        self.outcome.asked[second] += 1
        if OUTAGE_BEGINS <= self.now < self.recovery:
            return False
        quota = self.scenario.quota
        self.tokens = min(quota, self.tokens + (self.now - self.filled) * quota)
        self.filled = self.now
        if self.tokens < 1:
            self.outcome.refused[second] += 1
            return False
        self.tokens -= 1
        return True

    # What is counted

    def note_backlog(self) -> Iterator[float]:
        """Once, at the recovery."""
        for instance in self.fleet:
            instance.held = not instance.delivers
            if instance.held:
                self.outcome.held += len(instance.waiting)
            else:
                self.outcome.pending += len(instance.waiting)
        yield from ()

    def note_delivery(self, instance: Instance) -> None:
        recovery = self.scenario.recovery
        if self.now >= recovery and not instance.held:
            waited = self.now - recovery
            accepted = instance.waiting[:BATCH]
            self.outcome.waited += [waited for moment in accepted if moment < recovery]


def simulate(**settings: object) -> Outcome:
    """Run one scenario; the settings are Scenario's."""
    return Simulation(Scenario(**settings)).run()  # type: ignore[arg-type]


HEADER = (
    "quota",
    "requests before the return",
    "at most after it",
    "refused",
    "over quota for",
    "half sent after",
    "90 % after",
    "99 % after",
    "held for the next login",
)


def row(named: tuple[str, dict[str, object]]) -> tuple[str, ...]:
    """One line of the table: requests a second, shares, times since the recovery."""
    name, settings = named
    outcome = simulate(**settings)
    recovery = outcome.scenario.recovery
    times = [outcome.drained(share) for share in (0.5, 0.9, 0.99)]
    return (
        name,
        f"{outcome.mean(recovery - 1800, recovery):.0f}/s",
        f"{outcome.peak(recovery, outcome.scenario.end)}/s",
        f"{100 * outcome.refused_share():.1f} %",
        f"{outcome.saturated_seconds()} s",
        *("never" if seconds is None else f"{seconds:.0f} s" for seconds in times),
        f"{100 * outcome.held / (outcome.held + outcome.pending):.0f} %",
    )


def rows(instances: int = INSTANCES) -> list[tuple[str, ...]]:
    """The lowest default quota, a tenth of it, a tool's sweep on top, and what `sleep 1` does."""
    lowest = min(QUOTAS.values())
    stubborn = {"quota": lowest, "pauses": every_second, "give_up_after": float("inf")}
    scenarios: list[tuple[str, dict[str, object]]] = [
        (f"{lowest}/s", {"quota": lowest}),
        (f"{lowest // 10}/s", {"quota": lowest // 10}),
        (f"{lowest}/s, sweep", {"quota": lowest, "sweep": True}),
        (f"{lowest // 10}/s, sweep", {"quota": lowest // 10, "sweep": True}),
        (f"{lowest}/s, `sleep 1`", stubborn),
    ]
    with multiprocessing.Pool() as pool:
        return pool.map(row, [(n, {"instances": instances, **s}) for n, s in scenarios], 1)


def course(outcome: Outcome, before: int = 120, after: int = 480, step: int = 30) -> Iterator[str]:
    """Requests a second around the recovery, as lines of a chart."""
    scenario = outcome.scenario
    spans = range(-before, after, step)
    means = [outcome.mean(scenario.recovery + t, scenario.recovery + t + step) for t in spans]
    for t, mean in zip(spans, means):
        bar = "#" * round(50 * mean / max(scenario.quota, *means))
        yield f"{t:>6} s  {mean:8.1f}/s  {bar}"


def main() -> None:
    instances = int(sys.argv[1]) if len(sys.argv) > 1 else INSTANCES
    print(
        f"{instances} instances, {SESSIONS_PER_HOUR:g} sessions an hour each; EventBridge is away"
    )
    print(f"for {OUTAGE_SECONDS / 3600:g} h. Default quotas of PutEvents, requests a second:")
    for regions, quota in QUOTAS.items():
        print(f"  {quota:>6}  {regions}")
    for line in (HEADER, *rows(instances)):
        print(" | ".join(line), flush=True)
    print("\nRequests a second around the return, the lowest quota being the full width:")
    for text in course(simulate(instances=instances)):
        print(text)


if __name__ == "__main__":
    main()
