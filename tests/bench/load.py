"""The CPU time of steady logins and of a single one, and a backlog that goes out."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping

from bench.logins import BARE
from standins.instance import Hook, Instance

PER_SECOND = 10
HOOKS = 20
CALL_SECONDS = 0.02  # that EventBridge takes for one


def come_to_rest(box: Instance) -> None:
    """Wait until everything is sent, and end the deliverer, which would stay for more."""
    while box.records():
        time.sleep(0.01)
    box.kill_deliverers()
    be_alone(box)


def be_alone(box: Instance) -> None:
    """Wait for the deliverer's end: what it took is counted once it is not even a zombie."""
    while any(process.parent == 1 for process in box.processes()):
        time.sleep(0.01)


def steady(box: Instance, seconds: float) -> tuple[float, float]:
    """CPU seconds for an event, hook and deliverer, and for the bare interpreter, while ten logins
    a second go on for so long."""
    bare: list[float] = []
    hooks: list[float] = []
    come_to_rest(box)
    sent, orphans = len(box.eventbridge.entries()), box.orphans_cpu_seconds()
    began = time.monotonic()
    with box.session() as session:
        for number in range(int(seconds * PER_SECOND)):
            time.sleep(max(0, began + number / PER_SECOND - time.monotonic()))
            hooks.append(session.hook().cpu_seconds)
            bare.append(session.run(BARE)[0].cpu_seconds)
    box.eventbridge.wait_for(sent + len(hooks), 30)
    come_to_rest(box)
    delivering = box.orphans_cpu_seconds() - orphans
    return statistics.mean(hooks) + delivering / len(hooks), statistics.mean(bare)


def single(boxes: Mapping[str, Instance], times: int) -> dict[str, float]:
    """CPU seconds for an event that nothing follows: the deliverer stays, and leaves by itself."""
    seconds = dict.fromkeys(boxes, 0.0)
    for box in boxes.values():
        come_to_rest(box)
    before = {name: box.orphans_cpu_seconds() for name, box in boxes.items()}
    for _ in range(times):
        for name, box in boxes.items():
            seconds[name] += box.hook().cpu_seconds
        for box in boxes.values():
            be_alone(box)
    return {
        name: (seconds[name] + box.orphans_cpu_seconds() - before[name]) / times
        for name, box in boxes.items()
    }


def backlog(box: Instance, records: int) -> tuple[list[float], float]:
    """The seconds that logins wait beside so many waiting records, and events a second while these
    go out."""
    come_to_rest(box)
    sent = len(box.eventbridge.entries()) + records + HOOKS + 1
    with box.session() as session:
        with box.locked() as spool:  # no deliverer starts
            session.run(Hook())
            (first,) = box.records()
            for number in range(1, records):
                os.link(spool / first, spool / f"{int(first[:20]) + number:020d}-1")
            waits = [session.run(Hook())[0].seconds for _ in range(HOOKS)]
        box.eventbridge.set(delay=CALL_SECONDS)
        began = time.monotonic()
        session.hook()
        box.eventbridge.wait_for(sent, 600)
        return waits, (records + HOOKS + 1) / (time.monotonic() - began)
