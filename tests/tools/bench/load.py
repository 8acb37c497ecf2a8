"""The CPU time of steady logins and of a single one, and a backlog that goes out."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack

from standins.instance import Hook, Instance
from tools.bench.logins import BARE

PER_SECOND = 10
HOOKS = 20
CALL_SECONDS = 0.02  # that EventBridge takes for one


def settled_cpu_seconds(box: Instance) -> float:
    """What deliverers took, once all is sent and the last one, which would stay, is ended."""
    while box.records():
        time.sleep(0.01)
    box.kill_deliverers()
    be_alone(box)
    return box.orphans_cpu_seconds()


def be_alone(box: Instance) -> None:
    """Wait for the deliverer's end: what it took is counted once it is not even a zombie."""
    while any(process.parent == 1 for process in box.processes()):
        time.sleep(0.01)


def steady(boxes: Mapping[str, Instance], seconds: float) -> dict[str, tuple[float, float]]:
    """CPU seconds for an event, hook and deliverer, and for the bare interpreter, while ten logins
    a second go on in each for so long."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in boxes}
    before = {name: settled_cpu_seconds(box) for name, box in boxes.items()}
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(box.session()) for name, box in boxes.items()}
        began = time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            time.sleep(max(0, began + number / PER_SECOND - time.monotonic()))
            for name, session in sessions.items():
                hook, bare = (session.run(kind)[0].cpu_seconds for kind in (Hook(), BARE))
                runs[name].append((hook, bare))
    means = {name: [statistics.mean(kind) for kind in zip(*runs[name])] for name in boxes}
    return {
        name: (hook + (settled_cpu_seconds(boxes[name]) - before[name]) / len(runs[name]), bare)
        for name, (hook, bare) in means.items()
    }


def single(boxes: Mapping[str, Instance], times: int) -> dict[str, float]:
    """CPU seconds for an event that nothing follows: the deliverer stays, and leaves by itself."""
    seconds = dict.fromkeys(boxes, 0.0)
    before = {name: settled_cpu_seconds(box) for name, box in boxes.items()}
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
    settled_cpu_seconds(box)
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
