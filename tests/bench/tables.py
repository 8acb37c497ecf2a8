"""What is measured, as tables: tattle beside what people use instead, and under each Python."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.load import backlog, cpu_seconds
from bench.logins import Runs, measure
from standins.instance import SYSTEM_PYTHON

Table = list[list[str]]

HEAD = [
    *("medians", "tattle", "bare `python3 -IS -c pass`", "`curl --aws-sigv4` script", "AWS CLI")
]
WAITS = "what a login waits for"
ARRIVES = "from login to the event's arrival"
CPU = "CPU for an event, at ten logins a second"
MEMORY = "memory, the most of a process"
SMOKE_TEST = "the smoke test, until its event is sent"
BESIDE = "what a login waits for beside a backlog of {:,} events"
DRAINED = "events a second from a backlog, at 20 ms a call"


def machine() -> str:
    """What it was measured on."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    python = Path(os.path.realpath(SYSTEM_PYTHON)).name.replace("python", "Python ")
    processor = models[0] if models else platform.machine()
    return f"{os.cpu_count()} CPUs ({processor}), {python}, Linux {platform.release()}"


def tables(
    pythons: Mapping[str, str], rounds: int, seconds: float, records: int
) -> Iterator[Table]:
    """Both, measured now: tattle beside the others, then its hook under each of the Pythons, which
    are given by version. `seconds` of steady logins, `records` in the backlog."""
    here = os.path.realpath(SYSTEM_PYTHON)
    (system,) = (name for name, path in pythons.items() if os.path.realpath(path) == here)
    runs = measure(pythons, system, rounds)
    yield beside_others(runs[system], seconds, records)
    yield under_each_python(runs)


def beside_others(runs: Mapping[str, Runs], seconds: float, records: int) -> Table:
    tattle, bare, curl, aws = (runs[kind] for kind in ("starts", "bare", "curl", "aws"))
    hook, interpreter = cpu_seconds(seconds)
    beside, drained = backlog(records)
    waits = [ms(one.waits) for one in (tattle, bare, curl, aws)]
    return [
        HEAD,
        [WAITS, *waits],
        [ARRIVES, ms(tattle.arrivals), "", ms(curl.arrivals), ms(aws.arrivals)],
        [CPU, ms([hook]), ms([interpreter]), "", ""],
        [MEMORY, *(mib(one.kib) for one in (tattle, bare, curl, aws))],
        [SMOKE_TEST, ms(runs["smoke test"].waits), "", *waits[2:]],
        [BESIDE.format(records), ms(beside), "", "", ""],
        [DRAINED, f"{drained:.0f}", "", "", ""],
    ]


def under_each_python(runs: Mapping[str, Mapping[str, Runs]]) -> Table:
    table = [
        ["the hook, in times of the bare interpreter", *(f"Python {python}" for python in runs)],
        ["the bare interpreter", *(ms(of["bare"].waits) for of in runs.values())],
    ]
    for what, kind in (
        ("a deliverer is there", "there"),
        ("it starts a deliverer", "starts"),
        ("the first after an install", "first"),
    ):
        table.append([what, *(times(of[kind].waits, of["bare"].waits) for of in runs.values())])
        table.append(
            ["… until the event arrives", *(ms(of[kind].arrivals) for of in runs.values())]
        )
    return table


def ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"


def mib(kib: Sequence[int]) -> str:
    return f"{statistics.median(kib) / 1024:.0f} MiB"


def times(these: Sequence[float], those: Sequence[float]) -> str:
    return f"{statistics.median(these) / statistics.median(those):.2f}"


def markdown(table: Table) -> str:
    """As README.md has it, but in line for whoever reads it in a terminal."""
    widths = [max(map(len, column)) for column in zip(*table)]
    head, *rows = (
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in table
    )
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rows])
