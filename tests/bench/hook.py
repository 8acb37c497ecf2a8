"""What the hook costs a login, and how soon an event arrives.

In throwaway instances, with a real sshd. What is compared takes turns, so that what else the
machine does falls on all of it alike. Needs root. By hand: `python tests/bench/hook.py [SECONDS]`,
where SECONDS (60) is for how long ten logins a second go on.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.delivery import rest
from standins.instance import SYSTEM_PYTHON, Hook, HookResult, Instance
from standins.outages import OUTAGES
from support import ARTIFACT, find_pythons

PAIRS = 60
LOGINS = 15
ARRIVALS = 10
BURST = 300
PER_SECOND = 10
SECONDS = 60.0
CACHE = "/var/cache/tattle"
BARE = Hook(path=SYSTEM_PYTHON, arguments=["-IS", "-c", "pass"])
NOTHING = "#!/bin/true\n"

FIRST = 20
THERE_RATIO = 1.45
STARTS_RATIO = 1.55
FIRST_RATIO = 2.1
MEMORY_MIB = 16.0
LOGIN_MS = 100.0
ARRIVAL_MS = 100.0
CALLS = 60
CPU_RATIO = 2.0


class Row(NamedTuple):
    what: str
    measured: str
    limit: str
    """"" if there is none."""
    kept: bool


def row(what: str, value: float, unit: str, limit: float | None = None, base: float = 0.0) -> Row:
    """A limit holds for the value minus the base."""
    digits = 2 if unit == "times" else 1 if value < 100 else 0
    told = "" if limit is None else f"≤ {base + limit:.{digits}f} {unit}"
    return Row(what, f"{value:.{digits}f} {unit}", told, limit is None or value - base <= limit)


def median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def wait_for_rest(box: Instance) -> None:
    """Until no deliverer is left, not even as a zombie, and what waited has gone."""
    while any(process.parent == 1 for process in box.processes()):
        time.sleep(0.05)
    assert box.spool() == []


def hook_rows(python: str | None = None) -> list[Row]:
    """The hook beside the bare interpreter, which `python` replaces."""
    kinds: dict[str, list[HookResult]] = {"bare": [], "there": [], "starts": [], "first": []}
    with Instance(ARTIFACT) as box, box.session() as session:
        if python:
            box.replace_python(python)
        session.hook()
        box.eventbridge.wait_for(1)
        wait_for_rest(box)
        for _ in range(PAIRS):
            with box.locked():
                kinds["bare"] += session.run(BARE)
                kinds["there"] += session.run(Hook())
            kinds["bare"] += session.run(BARE)
            kinds["starts"] += session.run(Hook())
            box.kill_deliverers()
        for _ in range(FIRST):
            box.run(["rm", "-rf", "/var/cache/tattle"], check=True)
            kinds["first"] += session.run(Hook())
            box.kill_deliverers()
    ms = {kind: median_ms([one.seconds for one in results]) for kind, results in kinds.items()}
    name = Path(python or SYSTEM_PYTHON).name
    found = [row(f"{name} -IS -c pass", ms["bare"], "ms")]
    for what, kind, limit in (
        ("where there is a deliverer", "there", THERE_RATIO),
        ("where it starts one", "starts", STARTS_RATIO),
        ("the first after an install", "first", FIRST_RATIO),
    ):
        found.append(row(f"the hook, {what}", ms[kind], "ms"))
        held_to = limit if python is None else None
        found.append(row("  … to the bare interpreter", ms[kind] / ms["bare"], "times", held_to))
    if python is None:
        most = max(one.max_rss_kib for kind in ("there", "starts") for one in kinds[kind]) / 1024
        found.append(row("  … at most takes", most, "MiB", MEMORY_MIB))
    return found


def backlog_rows() -> list[Row]:
    """The hook where records wait, on a disk."""
    seconds: dict[int, list[float]] = {0: [], 10_000: [], 100_000: []}
    with ExitStack() as stack:
        boxes = {}
        for waiting in seconds:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
            folder.chmod(0o755)
            box = stack.enter_context(Instance(ARTIFACT, spool=folder))
            box.run(["mount", "-o", "remount,bind,rw", "/var/spool"], check=True)
            spool = stack.enter_context(box.locked())
            for number in range(waiting):
                (spool / f"{number:020d}-1").touch(0o600)
            boxes[waiting] = stack.enter_context(box.session())
        for _ in range(PAIRS):
            for waiting, session in boxes.items():
                seconds[waiting].append(session.hook().seconds)
    ms = {waiting: median_ms(own) for waiting, own in seconds.items()}
    return [
        *(
            row(f"the hook, {waiting} records waiting", value, "ms")
            for waiting, value in ms.items()
        ),
        row("  … the most to the least", max(ms.values()) / min(ms.values()), "times", 1.2),
    ]


def disk_rows() -> list[Row]:
    """What the disk under the spool does to the hook."""
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        folder.chmod(0o755)
        memory = stack.enter_context(Instance(ARTIFACT))
        disk = stack.enter_context(Instance(ARTIFACT, spool=folder))
        seconds: dict[str, list[float]] = {"memory (tmpfs)": [], "this machine's disk": []}
        # What is bound from the machine comes read-only, as the machine's files do.
        disk.run(["mount", "-o", "remount,bind,rw", "/var/spool"], check=True)
        sessions = [stack.enter_context(box.session()) for box in (memory, disk)]
        for box in (memory, disk):
            stack.enter_context(box.locked())
        for _ in range(PAIRS):
            for session, own in zip(sessions, seconds.values()):
                own.append(session.hook().seconds)
        for what, own in seconds.items():
            found.append(row(f"the hook, with its spool on {what}", median_ms(own), "ms"))
    return found


def ssh_rows() -> list[Row]:
    """`ssh … true`, each kind in an instance of its own."""
    kinds = ["no hook", "a hook that does nothing", "tattle"]
    with ExitStack() as stack:
        boxes = {}
        for kind in (*kinds, *(f"tattle, {outage.name}" for outage in OUTAGES)):
            artifact = NOTHING if kind == kinds[1] else ARTIFACT
            boxes[kind] = stack.enter_context(Instance(artifact))
        pam = boxes[kinds[0]].read("/etc/pam.d/sshd").splitlines()
        without = "".join(f"{line}\n" for line in pam if "pam_exec" not in line)
        boxes[kinds[0]].write("/etc/pam.d/sshd", without)
        seconds: dict[str, list[float]] = {kind: [] for kind in boxes}
        for kind, box in boxes.items():
            assert box.ssh("ubuntu", "true").returncode == 0  # unpacks
            if "tattle" in kind:
                box.eventbridge.wait_for(2)
        for outage in OUTAGES:
            outage.begin(boxes[f"tattle, {outage.name}"])
        for _ in range(LOGINS):
            for kind, box in boxes.items():
                began = time.monotonic()
                assert box.ssh("ubuntu", "true").returncode == 0
                seconds[kind].append(time.monotonic() - began)
    base = median_ms(seconds[kinds[1]])
    return [
        row(
            f"ssh host true, {kind}",
            median_ms(own),
            "ms",
            LOGIN_MS if "tattle" in kind else None,
            base,
        )
        for kind, own in seconds.items()
    ]


def arrival_rows() -> list[Row]:
    """From a hook's start to the event's arrival."""
    seconds: dict[str, list[float]] = {"nothing unpacked": [], "no deliverer": [], "one there": []}
    with Instance(ARTIFACT) as box, box.session() as session:

        def arrival() -> float:
            count = len(box.eventbridge.entries())
            began = session.hook().started
            return box.eventbridge.wait_for(count + 1, 30)[-1].arrived - began

        for _ in range(ARRIVALS):
            rest(box)
            shutil.rmtree(box.path(CACHE), ignore_errors=True)
            seconds["nothing unpacked"].append(arrival())
            rest(box)
            seconds["no deliverer"].append(arrival())
            for _ in range(3):
                time.sleep(0.3)
                seconds["one there"].append(arrival())
    return [
        row(
            f"from hook to arrival, {what}",
            median_ms(own),
            "ms",
            ARRIVAL_MS if what == "one there" else None,
        )
        for what, own in seconds.items()
    ]


def burst_rows() -> list[Row]:
    """Many hooks at once."""
    with Instance(ARTIFACT) as box, box.session() as session:
        session.hook()
        box.eventbridge.wait_for(1)
        wait_for_rest(box)
        box.eventbridge.clear()
        began = time.monotonic()
        results = session.run(*(Hook(user=f"u{number}") for number in range(BURST)))
        hooks_took = time.monotonic() - began
        entries = box.eventbridge.wait_for(BURST, 120)
        assert {one.returncode for one in results} == {0}
        wait_for_rest(box)
        calls, most = len(box.eventbridge.calls()), box.eventbridge.most_in_progress()
        assert len(box.eventbridge.entries()) == BURST
    return [
        row(f"{BURST} hooks at once, until the last is done", 1000 * hooks_took, "ms"),
        row("  … until the last event is there", 1000 * (entries[-1].arrived - began), "ms"),
        row("  … in", calls, "calls", CALLS),
        row("  … at a time at most", most, "calls", 1),
    ]


def busy_rows(seconds: float = SECONDS) -> list[Row]:
    """CPU time while logins come steadily."""
    with Instance(ARTIFACT) as box, box.session() as session:
        session.hook()
        box.eventbridge.wait_for(1)
        wait_for_rest(box)
        box.eventbridge.clear()
        bare: list[float] = []
        hooks: list[HookResult] = []
        orphans = box.orphans_cpu_seconds()
        began = time.monotonic()
        count = int(seconds * PER_SECOND)
        for number in range(count):
            time.sleep(max(0, began + number / PER_SECOND - time.monotonic()))
            hooks.append(session.hook())
            if number % 5 == 0:
                bare.append(session.run(BARE)[0].cpu_seconds)
        entries = box.eventbridge.wait_for(count, 30)
        wait_for_rest(box)
        delivering = box.orphans_cpu_seconds() - orphans
    hook_ms = 1000 * statistics.mean(one.cpu_seconds for one in hooks)
    bare_ms = 1000 * statistics.mean(bare)
    deliverer_ms = 1000 * delivering / count
    latency = [entry.arrived - one.started for entry, one in zip(entries, hooks)]
    what = f"{PER_SECOND} logins a second for {seconds:.0f} s, CPU per event"
    return [
        row(f"{what}: the hook", hook_ms, "ms"),
        row("  … its deliverer", deliverer_ms, "ms"),
        row("  … the bare interpreter", bare_ms, "ms"),
        row("  … hook and deliverer to it", (hook_ms + deliverer_ms) / bare_ms, "times", CPU_RATIO),
        row("  … from hook to arrival", median_ms(latency), "ms", ARRIVAL_MS),
        row("  … the slowest in a hundred", 1000 * statistics.quantiles(latency, n=100)[-1], "ms"),
    ]


def rows(seconds: float = SECONDS) -> list[Row]:
    """All of them."""
    return [
        *hook_rows(),
        *(line for python in find_pythons().values() for line in hook_rows(python)),
        *disk_rows(),
        *backlog_rows(),
        *ssh_rows(),
        *arrival_rows(),
        *burst_rows(),
        *busy_rows(seconds),
    ]


def main() -> int:
    table = rows(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
    print(f"Medians; {PAIRS} pairs of hooks, {LOGINS} rounds of logins, {ARRIVALS} of arrivals")
    for what, measured, limit, kept in table:
        print(f"{what:<60}{measured:>12}  {limit:<14}{'' if kept else 'NO'}".rstrip())
    return 0 if all(kept for *_, kept in table) else 1


if __name__ == "__main__":
    sys.exit(main())
