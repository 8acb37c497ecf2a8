"""What a login waits for and when its event arrives: tattle beside what people use instead.

All are run as pam_exec runs a hook, in a throwaway instance for each build and Python, and in
turns, so that what else the machine does falls on all alike. The spool is on the disk that holds
the checkout. EventBridge's certificate is checked as it would be on EC2: against Amazon's
authorities, or the 130 that botocore knows, to each of which the stand-in's is added.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import botocore

from standins.instance import SYSTEM_PYTHON, Hook, Instance, Session
from support import ROOT, repacked

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
    AWS: f"#!/bin/sh\nHOME=/root AWS_CA_BUNDLE={CA} exec {sys.prefix}/bin/python -m awscli"
    f" events put-events --region us-east-1 --entries '{json.dumps(ENTRIES)}'\n",
}
BARE = Hook(path=SYSTEM_PYTHON, arguments=("-IS", "-c", "pass"))
# The kinds of runs, in the order of a round.
HOOKS = {"bare": BARE, "starts": Hook(), "there": Hook()}
FIRST = {"first": Hook()}
OTHERS = {"curl": Hook(path=CURL), "aws": Hook(path=AWS)}
# A process that has a directory of the machine's be /var/spool, on which the instance has its own.
MOUNT = """
mount --rbind / /mnt
mount --bind "/mnt$1" /var/spool
mount -o remount,bind,rw /var/spool
umount -l /mnt
"""
APART_SECONDS = 0.1  # since the last event: what follows at once waits for more, to go as a batch
WRITER = 'while dd if=/dev/zero of="$0" bs=1M count=64 conv=fsync 2>/dev/null; do :; done'


class Build(NamedTuple):
    """What is measured: a built file under a Python."""

    artifact: Path
    python: str = SYSTEM_PYTHON


@dataclass
class Runs:
    """What was measured of one kind: for each run a value."""

    waits: list[float] = field(default_factory=list)
    """Seconds from its start to its end."""
    arrivals: list[float] = field(default_factory=list)
    """Seconds from its start to the event's arrival."""
    kib: list[int] = field(default_factory=list)
    """The most memory of it and its deliverer."""


@contextmanager
def disk() -> Iterator[Path]:
    """A directory on the disk that holds the checkout."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
        yield Path(folder)
        for spool in Path(folder).iterdir():  # a deliverer that was killed may still end its write
            shutil.rmtree(spool, ignore_errors=True)


@contextmanager
def instances(builds: Mapping[str, Build]) -> Iterator[dict[str, Instance]]:
    """An instance for each, its spool on that disk, in which the first event has been sent."""
    with disk() as folder, ExitStack() as stack:
        yield {
            name: stack.enter_context(instance(build, Path(tempfile.mkdtemp(dir=folder))))
            for name, build in builds.items()
        }


@contextmanager
def instance(build: Build, folder: Path) -> Iterator[Instance]:
    with Instance() as box:
        pem, trusting = b"\n" + box.ca.pem, folder / "tattle"
        repacked(build.artifact, trusting, lambda n, old: old + pem if n.endswith(".pem") else old)
        box.install(trusting)
        box.replace_python(build.python)
        box.path("/root/.aws/config").unlink()
        box.write(CA, ROOTS.read_text() + box.ca.pem.decode())
        for path, text in SCRIPTS.items():
            box.write(path, text, 0o755)
        for there in (sys.base_prefix, sys.prefix):
            box.reveal(there)  # where the AWS CLI is
        spool = folder / "spool"
        spool.mkdir(0o755)
        box.run(["/bin/sh", "-euc", MOUNT, "-", str(spool)], check=True)
        box.hook()
        box.eventbridge.wait_for(1, 30)
        yield box


@contextmanager
def writing() -> Iterator[None]:
    """Somebody writes to the disk, 64 MiB at a time."""
    with disk() as folder:
        command = ["/bin/sh", "-c", WRITER, str(folder / "file")]
        writer = subprocess.Popen(command, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(writer.pid, signal.SIGKILL)
            writer.wait()


def measure(
    boxes: Mapping[str, Instance], kinds: Mapping[str, Hook], rounds: int
) -> dict[str, dict[str, Runs]]:
    """Each kind's runs, by the instance's name."""
    runs = {name: {kind: Runs() for kind in kinds} for name in boxes}
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(box.session()) for name, box in boxes.items()}
        for number in range(rounds + 1):
            for name, box in boxes.items():
                for kind, hook in kinds.items():
                    # The round before the first fills the page cache.
                    run(box, sessions[name], kind, hook, runs[name][kind] if number else Runs())
    return runs


def run(box: Instance, session: Session, kind: str, hook: Hook, runs: Runs) -> None:
    """Run it once everything has been sent, and wait for its event."""
    while box.records():
        time.sleep(0.01)
    if kind != "there":
        box.kill_deliverers()
    if kind == "first":
        shutil.rmtree(box.path(CACHE), ignore_errors=True)
    time.sleep(APART_SECONDS)
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
