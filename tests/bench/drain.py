"""How fast a backlog goes out: so many waiting records, and an EventBridge that takes 20 ms a call.

`tattle flush` of several artifacts, in turns, in one throwaway instance. Needs root. By hand:
`python tests/bench/drain.py [RECORDS] [ARTIFACT …]`; without an artifact, the one that was built.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from standins.instance import SPOOL, TATTLE, Instance
from support import ARTIFACT

RECORDS = 10_000
DELAY_SECONDS = 0.02
ROUNDS = 2


def drain(box: Instance, artifact: Path, records: int) -> float:
    """Events a second that this artifact sends of a backlog."""
    box.reset()
    box.install(artifact)
    assert box.hook().returncode == 0  # its build is unpacked by that
    box.eventbridge.wait_for(1, timeout=30)
    while box.spool():
        time.sleep(0.01)
    box.reset()
    box.imds.set(role=None)
    assert box.hook().returncode == 0
    box.syslog.wait_for("events wait in the spool", timeout=30)
    while running := box.processes(TATTLE):
        box.kill(*running)
    box.path(f"{SPOOL}/.fault").unlink(missing_ok=True)
    box.imds.set(role="tattle")
    box.eventbridge.set(delay=DELAY_SECONDS)
    (first,) = box.spool()
    spool = box.path(SPOOL)
    for number in range(1, records):
        os.link(spool / first, spool / f"{int(first[:20]) + number:020d}-1")
    began = time.monotonic()
    done = box.run([TATTLE, "flush"], timeout=600)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done
    assert len(box.eventbridge.entries()) == records
    return records / seconds


def rows(
    records: int = RECORDS, artifacts: Sequence[Path] = (ARTIFACT,), rounds: int = ROUNDS
) -> list[tuple[str, str]]:
    """Artifact, and its median of events a second."""
    rates: dict[Path, list[float]] = {artifact: [] for artifact in artifacts}
    with Instance(artifacts[0]) as box:
        for _ in range(rounds):
            for artifact in artifacts:
                rates[artifact].append(drain(box, artifact, records))
    return [(str(path), f"{statistics.median(rates[path]):.0f} a second") for path in artifacts]


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    for name, figure in rows(records, [Path(path) for path in sys.argv[2:]] or [ARTIFACT]):
        print(f"{name:<50}{figure:>20}")


if __name__ == "__main__":
    main()
