"""tattle on Debian's releases, from the oldest that has a Python for it to the one in the making.

`./build.sh distros [SUITE …]`: each release is debootstrapped once, into .distros, and is then the
root of throwaway instances, without systemd and with it. Prints one table: ✓ and the seconds that
it took, or a number, under which the reason stands below. Ends with 1 if tattle was wrong anywhere.
`./build.sh distros test [SUITE …]` is another matter: see fresh.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from standins.instance import SYSTEM_PYTHON, Instance
from support import ARTIFACT, ROOT
from tools.distros import bootstrap, facts, fresh, machines, scenarios, systemd, witnesses

CACHE = ROOT / ".distros"
# Besides each release as it is: with another Python of its than the one that it calls python3.
OTHER_PYTHONS = {"sid-python3.15": ("sid", "/usr/bin/python3.15")}
COLUMNS = (*bootstrap.SUITES, *OTHER_PYTHONS)
WITHOUT_SYSTEMD = {**scenarios.SCENARIOS, **witnesses.WITHOUT_SYSTEMD}
WITH_SYSTEMD = {**witnesses.WITH_SYSTEMD, **machines.SCENARIOS, **systemd.SCENARIOS}
GOOD, SKIPPED, BAD = "✓", "-", "✗"


@dataclass
class Column:
    """What became of one release."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    results: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    """For each scenario GOOD, SKIPPED or BAD, the reason and the seconds it took."""
    bootstrap_seconds: float = 0.0
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="./build.sh distros", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(COLUMNS))
    parser.add_argument("--only", action="append", metavar="SCENARIO", help="may be repeated")
    arguments = parser.parse_args()
    unknown = {*arguments.suites} - {*COLUMNS}
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    columns = [
        examine(name, arguments.only)
        for name in COLUMNS
        if name in arguments.suites or not arguments.suites
    ]
    print(table(columns))
    return 1 if any(BAD in result for one in columns for result in one.results.values()) else 0


def examine(name: str, only: list[str] | None) -> Column:
    column = Column(name)
    suite, python = OTHER_PYTHONS.get(name, (name, ""))
    began = time.monotonic()
    try:
        root = bootstrap.root(suite, CACHE)
    except bootstrap.BootstrapError as error:
        for scenario in (*WITHOUT_SYSTEMD, *WITH_SYSTEMD):
            column.results[scenario] = (SKIPPED, str(error), 0.0)
        return column
    column.bootstrap_seconds = time.monotonic() - began

    def furnish(box: Instance) -> None:
        if python:
            box.run(["mount", "--bind", python, SYSTEM_PYTHON], check=True)
        scenarios.prepare(box)

    began = time.monotonic()
    with Instance(ARTIFACT, root=root) as box:
        furnish(box)
        column.facts = facts.of(box)
        for scenario, run in chosen(WITHOUT_SYSTEMD, only):
            with noted(column, scenario):
                box.reset()
                run(box)
    of_systemd = [*chosen(WITH_SYSTEMD, only)]
    try:
        if of_systemd:
            with systemd.booted(ARTIFACT, root, furnish) as box:
                for scenario, run in of_systemd:
                    with noted(column, scenario):
                        systemd.tidy(box)
                        run(box)
    except scenarios.Skipped as reason:
        for scenario, _ in of_systemd:
            column.results[scenario] = (SKIPPED, str(reason), 0.0)
    column.seconds = time.monotonic() - began
    return column


def chosen(
    those: Mapping[str, Callable[[Instance], None]], only: list[str] | None
) -> Iterator[tuple[str, Callable[[Instance], None]]]:
    return ((name, run) for name, run in those.items() if only is None or name in only)


@contextmanager
def noted(column: Column, scenario: str) -> Iterator[None]:
    """Note what becomes of a scenario, and go on."""
    began = time.monotonic()
    result, reason = GOOD, ""
    try:
        yield
    except scenarios.Skipped as skipped:
        result, reason = SKIPPED, str(skipped)
    except AssertionError as error:
        result, reason = BAD, str(error)
    except Exception as error:  # of the scenario's own; the others are still of interest
        result, reason = BAD, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    reason = " ".join(reason.split())
    column.results[scenario] = (result, reason, seconds)
    print(f"{column.name}: {result} {scenario}, {seconds:.1f} s {reason}", file=sys.stderr)


def table(columns: list[Column]) -> str:
    """Facts, results and durations, a column for each suite, and then the reasons."""
    reasons: list[str] = []

    def cell(result: tuple[str, str, float]) -> str:
        mark, reason, seconds = result
        if reason:
            if reason not in reasons:
                reasons.append(reason)
            mark += f" [{reasons.index(reason) + 1}]"
        return f"{mark} {seconds:.1f} s"

    rows = [["", *(column.name for column in columns)]]
    rows += [
        [fact, *(column.facts.get(fact, "") for column in columns)]
        for fact in dict.fromkeys(fact for column in columns for fact in column.facts)
    ]
    rows += [
        [name, *(cell(column.results[name]) for column in columns)]
        for name in (*WITHOUT_SYSTEMD, *WITH_SYSTEMD)
        if any(name in column.results for column in columns)
    ]
    rows.append(["all of it", *(f"{column.seconds:.0f} s" for column in columns)])
    rows.append(["debootstrap", *(f"{column.bootstrap_seconds:.0f} s" for column in columns)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"[{number}] {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


if __name__ == "__main__":
    sys.exit(fresh.main(sys.argv[2:], CACHE) if sys.argv[1:2] == ["test"] else main())
