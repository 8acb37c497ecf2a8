"""Upgrades from the versions before, and back, while logins go on: what arrives, how often, and
what the deliverers take meanwhile. `./build.sh upgrades [SECONDS]`, by root, some five minutes.

Old versions are built from git's history, with the tools of requirements.lock.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from standins.instance import SPOOL, TATTLE, Instance
from support import ARTIFACT, ROOT
from tools.bench.tables import markdown

COMMITS = {"1.0": "1ca94fa", "1.1": "e950575"}  # the last of each version
NEW = "new"
PER_SECOND = 3
CALL_SECONDS = 0.05  # that EventBridge takes for one
LOOK_SECONDS = 0.25  # between two looks at the processes
DRAIN_SECONDS = 120.0  # for what waits after an outage: the longest pause is 60 s
AT_ONCE = 2
STARTED_SECONDS = 5.0  # in which a process has found out whether it is needed
HEAD = ["", "EventBridge", "logins", "arrived", "copies", "processes", "that stay", "memory", "log"]
REMOVED = f"rm -f {SPOOL}/.deliverer {SPOOL}/.standby"

Act = Callable[[Instance], object]


class Case(NamedTuple):
    """What is installed first, and what happens at a third and at two thirds of the time."""

    name: str
    first: Path
    acts: tuple[Act, Act]


class Deliverers:
    """Looks at all there are, again and again: how many at most, and how much memory they take."""

    def __init__(self, box: Instance) -> None:
        self.box = box
        self.processes = 0
        self.staying = 0
        self.megabytes = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Deliverers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        first_seen: dict[int, float] = {}
        while not self._ended.wait(LOOK_SECONDS):
            # Those of 1.0 are called as the hook is, which has ended by then.
            found = [one for one in self.box.processes(TATTLE) if one.parent == 1]
            kilobytes = 0
            for process in found:
                with suppress(OSError, TypeError):  # it has ended
                    told = self.box.read(f"/proc/{process.pid}/smaps_rollup")
                    kilobytes += int(re.search(r"^Pss: +(\d+)", told, re.M)[1])  # type: ignore[index]
            now = time.monotonic()
            first_seen = {one.pid: first_seen.get(one.pid, now) for one in found}
            staying = sum(now - seen > STARTED_SECONDS for seen in first_seen.values())
            self.processes = max(self.processes, len(found))
            self.staying = max(self.staying, staying)
            self.megabytes = max(self.megabytes, kilobytes / 1024)


def build(commit: str, folder: Path) -> Path:
    """Build an old version with the tools of this checkout."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder)
    if (folder / "requirements.lock").read_bytes() == (ROOT / "requirements.lock").read_bytes():
        (folder / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run([folder / "build.sh"], check=True, stdout=sys.stderr)
    return folder / "dist" / "tattle"


def cases(versions: Mapping[str, Path]) -> list[Case]:
    def install(version: str) -> Act:
        return lambda box: box.install(versions[version])

    def remove(box: Instance) -> None:
        box.run(["sh", "-c", REMOVED], check=True)

    upgrades = [
        Case(f"{old} → {NEW} → {old}", versions[old], (install(NEW), install(old)))
        for old in versions
        if old != NEW
    ]
    return [*upgrades, Case(f"{NEW}, locks removed twice", versions[NEW], (remove, remove))]


def run(case: Case, fault: str | None, seconds: float) -> list[str]:
    """Log in three times a second meanwhile; a row of the table."""
    users = [f"u{number}" for number in range(int(seconds * PER_SECOND))]
    with Instance(case.first) as box:
        box.eventbridge.set(delay=CALL_SECONDS, fault=fault)
        with Deliverers(box) as deliverers, box.session() as session:
            began = time.monotonic()
            for number, user in enumerate(users):
                if number in (len(users) // 3, 2 * len(users) // 3):
                    case.acts[number > len(users) // 2](box)
                time.sleep(max(0, began + number / PER_SECOND - time.monotonic()))
                assert session.hook(user=user).returncode == 0
            box.eventbridge.set(fault=None)
            arrived = box.arrived
            deadline = time.monotonic() + DRAIN_SECONDS
            while len(arrived()) < len(users) and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(10)  # for copies
        counts = arrived()
        log = sorted({re.sub(r"\d{3,}|[-\w]+$", "…", line.message)[:70] for line in box.log()})
    return [
        case.name,
        fault or "answers",
        f"{len(users)}",
        f"{len(counts)}",
        f"{sum(counts.values()) - len(counts)}",
        f"{deliverers.processes}",
        f"{deliverers.staying}",
        f"{deliverers.megabytes:.0f} MiB",
        "; ".join(log),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="./build.sh upgrades", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=40.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        versions = {old: build(commit, Path(folder, old)) for old, commit in COMMITS.items()}
        those = cases({**versions, NEW: ARTIFACT})
        todo = [(case, fault) for case in those for fault in (None, "refuse")]
        rows = [pool.submit(run, case, fault, asked.seconds) for case, fault in todo]
        print(markdown([HEAD, *(row.result() for row in rows)]))


if __name__ == "__main__":
    main()
