"""What a login waits for and when its event arrives: tattle beside what people use instead.

All are run as pam_exec runs a hook, in a throwaway instance for each Python, and in turns, so that
what else the machine does falls on all alike. EventBridge's certificate is checked against
botocore's own 130 roots and the stand-in's, as it would be on EC2.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import botocore

from standins.instance import SYSTEM_PYTHON, Hook, Instance, Session
from support import ARTIFACT

CACHE = "/var/cache/tattle"
ROOTS = Path(botocore.__file__).with_name("cacert.pem")
CA = "/root/test-ca.pem"
CURL = "/usr/local/bin/curl_tattle"
AWS = "/usr/local/bin/aws_tattle"
ENTRIES = [
    {
        "Source": "com.unbounce.tattle",
        "DetailType": "SSH connection event detected",
        "Resources": ["arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"],
        "Detail": json.dumps({"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}),
    }
]
SCRIPTS = {
    CURL: Path(__file__)
    .with_name("curl_tattle.sh")
    .read_text()
    .replace("set -eu\n", f"set -eu\nCURL_TATTLE_CACERT={CA}\n"),
    # Knows neither the identity nor the session: that would be another two calls of curl.
    AWS: f"#!/bin/sh\nHOME=/root exec {sys.prefix}/bin/python -m awscli"
    f" events put-events --region us-east-1 --entries '{json.dumps(ENTRIES)}'\n",
}
BARE = Hook(path=SYSTEM_PYTHON, arguments=("-IS", "-c", "pass"))
# The kinds of runs, in the order of a round.
UNDER_EACH_PYTHON = {"first": Hook(), "bare": BARE, "starts": Hook(), "there": Hook()}
ONCE = {"smoke test": Hook(service=None), "curl": Hook(path=CURL), "aws": Hook(path=AWS)}


@dataclass
class Runs:
    """What was measured of one kind: for each run a value."""

    waits: list[float] = field(default_factory=list)
    """Seconds from its start to its end."""
    arrivals: list[float] = field(default_factory=list)
    """Seconds from its start to the event's arrival."""
    kib: list[int] = field(default_factory=list)
    """The most memory of it and its deliverer."""


def measure(pythons: Mapping[str, str], system: str, rounds: int) -> dict[str, dict[str, Runs]]:
    """Each kind's runs, by the Python's version; what is no hook of ours runs under `system`'s."""
    with ExitStack() as stack:
        boxes = {version: stack.enter_context(Instance(ARTIFACT)) for version in pythons}
        for version, box in boxes.items():
            prepare(box, pythons[version])
        sessions = {version: stack.enter_context(box.session()) for version, box in boxes.items()}
        for number in range(rounds + 1):
            if number <= 1:  # the round before the first filled the page cache
                runs = {
                    version: {kind: Runs() for kind in hooks(version == system)}
                    for version in pythons
                }
            for version, box in boxes.items():
                for kind, hook in hooks(version == system).items():
                    run(box, sessions[version], kind, hook, runs[version][kind])
        return runs


def hooks(with_others: bool) -> dict[str, Hook]:
    return {**UNDER_EACH_PYTHON, **(ONCE if with_others else {})}


def prepare(box: Instance, python: str) -> None:
    """Put the scripts in, and have that Python be /usr/bin/python3."""
    box.replace_python(python)
    box.write(CA, ROOTS.read_text() + box.ca.pem.decode())
    for path, text in SCRIPTS.items():
        box.write(path, text, 0o755)
    for folder in (sys.base_prefix, sys.prefix):
        box.reveal(folder)  # where the AWS CLI is


def run(box: Instance, session: Session, kind: str, hook: Hook, runs: Runs) -> None:
    """Run it once everything has been sent, and wait for its event."""
    while box.spool():
        time.sleep(0.01)
    if kind != "there":
        box.kill_deliverers()
    if kind == "first":
        shutil.rmtree(box.path(CACHE), ignore_errors=True)
    count = len(box.eventbridge.entries())
    (result,) = session.run(hook)
    assert result.returncode == 0, (kind, result)
    runs.waits.append(result.seconds)
    if hook is not BARE:
        entry = box.eventbridge.wait_for(count + 1, 30)[-1]
        runs.arrivals.append(entry.arrived - result.started)
    deliverers = [peak_kib(box, process.pid) for process in box.deliverers()]
    runs.kib.append(max([result.max_rss_kib, *deliverers]))


def peak_kib(box: Instance, pid: int) -> int:
    """The most memory that a process inside had so far."""
    status = box.read(f"/proc/{pid}/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0
