"""tattle under load: steady logins, and a backlog that goes out."""

from __future__ import annotations

import os
import statistics
import time

from bench.logins import BARE
from standins.instance import Hook, Instance
from support import ARTIFACT

PER_SECOND = 10
HOOKS = 20
CALL_SECONDS = 0.02  # that EventBridge takes for one


def come_to_rest(box: Instance) -> None:
    """Wait until everything is sent, and end the deliverer, which would stay for more. What it took
    is counted once it is not even a zombie."""
    while box.spool():
        time.sleep(0.01)
    box.kill_deliverers()
    while any(process.parent == 1 for process in box.processes()):
        time.sleep(0.01)


def cpu_seconds(seconds: float) -> tuple[float, float]:
    """CPU time for an event, hook and deliverer, and for the bare interpreter, while ten logins a
    second go on for so long."""
    bare: list[float] = []
    hooks: list[float] = []
    with Instance(ARTIFACT) as box, box.session() as session:
        session.hook()  # unpacks
        come_to_rest(box)
        orphans = box.orphans_cpu_seconds()
        began = time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            time.sleep(max(0, began + number / PER_SECOND - time.monotonic()))
            hooks.append(session.hook().cpu_seconds)
            bare.append(session.run(BARE)[0].cpu_seconds)
        box.eventbridge.wait_for(1 + len(hooks), 30)
        come_to_rest(box)
        delivering = box.orphans_cpu_seconds() - orphans
    return statistics.mean(hooks) + delivering / len(hooks), statistics.mean(bare)


def backlog(records: int) -> tuple[list[float], float]:
    """The seconds that logins wait beside so many waiting records, and events a second while these
    go out."""
    with Instance(ARTIFACT) as box, box.session() as session:
        session.hook()  # unpacks
        come_to_rest(box)
        box.eventbridge.set(delay=CALL_SECONDS)
        with box.locked() as spool:  # no deliverer starts
            session.run(Hook())
            (first,) = box.spool()
            for number in range(1, records):
                os.link(spool / first, spool / f"{int(first[:20]) + number:020d}-1")
            waits = [session.run(Hook())[0].seconds for _ in range(HOOKS)]
        began = time.monotonic()
        session.hook()
        sent = records + HOOKS + 1
        box.eventbridge.wait_for(1 + sent, 600)
        return waits, sent / (time.monotonic() - began)
