"""What is measured, as tables: tattle beside what people use instead, and beside another build."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from standins.instance import SYSTEM_PYTHON
from support import ARTIFACT, ROOT
from tools.bench.load import backlog, single, steady
from tools.bench.logins import FIRST, HOOKS, OTHERS, Build, Runs, instances, measure, writing

Table = list[list[str]]

OURS = "tattle"
HEAD = [*("medians", OURS, "bare `python3 -IS -c pass`", "`curl --aws-sigv4` script", "AWS CLI")]
WAITS = "what a login waits for"
ARRIVES = "from login to the event's arrival"
THERE = "… where a deliverer is there"
CPU = "CPU for an event, at ten logins a second"
SINGLE = "CPU for an event that none follows"
MEMORY = "memory, the most of a process"
BESIDE = "what a login waits for beside a backlog of {:,} events"
DRAINED = "events a second from a backlog, at 20 ms a call"
SINGLES = 3


def machine() -> str:
    """What it was measured on."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    python = Path(os.path.realpath(SYSTEM_PYTHON)).name.replace("python", "Python ")
    processor = models[0] if models else platform.machine()
    linux = f"Linux {platform.release()}"
    return f"{os.cpu_count()} CPUs ({processor}), {python}, {linux}, the spool on {file_system()}"


def file_system() -> str:
    """The type of the file system that holds the spool: findmnt(8)."""
    command = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", str(ROOT)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def tables(
    pythons: Mapping[str, str], other: Path | None, rounds: int, seconds: float, records: int
) -> Iterator[Table]:
    """All of them, measured now. Pythons are given by version; other is a build to compare with.

    `seconds` of steady logins, `records` in the backlog.
    """
    builds = {OURS: Build(ARTIFACT), **({other.name: Build(other)} if other else {})}
    with instances(builds) as boxes:
        quiet = measure(boxes, {**HOOKS, **OTHERS}, rounds)
        with writing():
            busy = measure(boxes, HOOKS, rounds)
        cpu = steady(boxes, seconds)
        alone = single(boxes, SINGLES)
        yield beside_others(quiet, cpu, alone)
        yield beside_a_writer(quiet, busy)
        yield with_a_backlog(*backlog(boxes[OURS], records), records)
    with instances({name: Build(ARTIFACT, path) for name, path in pythons.items()}) as boxes:
        yield under_each_python(measure(boxes, {**FIRST, **HOOKS}, rounds))


def beside_others(
    runs: Mapping[str, Mapping[str, Runs]],
    cpu: Mapping[str, tuple[float, float]],
    alone: Mapping[str, float],
) -> Table:
    of = runs[OURS]
    builds = [name for name in runs if name != OURS]

    def row(what: str, ours: Sequence[str], others: Sequence[str]) -> list[str]:
        """What of ours, the interpreter, the scripts; then of the other builds."""
        return [what, *ours, *[""] * (len(HEAD) - 1 - len(ours)), *others]

    return [
        [*HEAD, *builds],
        row(
            WAITS,
            [ms(of[kind].waits) for kind in ("starts", "bare", "curl", "aws")],
            [ms(runs[name]["starts"].waits) for name in builds],
        ),
        row(
            ARRIVES,
            [ms(of["starts"].arrivals), "", ms(of["curl"].arrivals), ms(of["aws"].arrivals)],
            [ms(runs[name]["starts"].arrivals) for name in builds],
        ),
        row(
            THERE,
            [ms(of["there"].arrivals)],
            [ms(runs[name]["there"].arrivals) for name in builds],
        ),
        row(CPU, [ms([one]) for one in cpu[OURS]], [ms(cpu[name][:1]) for name in builds]),
        row(SINGLE, [ms([alone[OURS]])], [ms([alone[name]]) for name in builds]),
        row(
            MEMORY,
            [mib(of[kind].kib) for kind in ("starts", "bare", "curl", "aws")],
            [mib(runs[name]["starts"].kib) for name in builds],
        ),
    ]


def beside_a_writer(
    quiet: Mapping[str, Mapping[str, Runs]], busy: Mapping[str, Mapping[str, Runs]]
) -> Table:
    """Medians and 90th percentiles of what a login waits for, in times of the interpreter's."""
    table = [["the hook, in times of the bare interpreter"]]
    for name in quiet:
        table[0] += [name, "90th percentile"]
    for where, runs in (("", quiet), (", beside a writer to the same disk", busy)):
        for what, kind in (("a deliverer is there", "there"), ("it starts a deliverer", "starts")):
            row = [what + where]
            for of in runs.values():
                these, those = of[kind].waits, of["bare"].waits
                row += [times(these, those), f"{ninth(these) / ninth(those):.2f}"]
            table.append(row)
    return table


def with_a_backlog(waits: Sequence[float], drained: float, records: int) -> Table:
    return [
        ["with a backlog", OURS],
        [BESIDE.format(records), ms(waits)],
        [DRAINED, f"{drained:.0f}"],
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


def ninth(values: Sequence[float]) -> float:
    """The 90th percentile."""
    return sorted(values)[len(values) * 9 // 10]


def times(these: Sequence[float], those: Sequence[float]) -> str:
    return f"{statistics.median(these) / statistics.median(those):.2f}"


def markdown(table: Table) -> str:
    """As README.md has it, but in line for whoever reads it in a terminal."""
    widths = [max(map(len, column)) for column in zip(*table)]
    head, *rows = (
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in table
    )
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rows])
