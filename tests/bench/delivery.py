"""What a login waits for and when the event is there: tattle beside what people use instead.

All are run as pam_exec runs a hook, in one throwaway instance and in turns, so that what else the
machine does falls on all alike. EventBridge's certificate is checked against botocore's own 130
roots and the stand-in's, as it would be on EC2. Needs root. By hand: `python
tests/bench/delivery.py [ROUNDS]`.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import botocore

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from standins.instance import SYSTEM_PYTHON, TATTLE, Instance, Session
from support import ARTIFACT, ROOT

ROUNDS = 15
CACHE = "/var/cache/tattle"
ROOTS = Path(botocore.__file__).with_name("cacert.pem")
CA = "/root/test-ca.pem"
CURL = "/usr/local/bin/curl_tattle"
AWS = Path(sys.executable).with_name("aws")
ENTRIES = [
    {
        "Source": "com.unbounce.tattle",
        "DetailType": "SSH connection event detected",
        "Resources": ["arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"],
        "Detail": json.dumps({"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}),
    }
]
SCRIPTS: Mapping[str, str] = {
    "/usr/local/bin/nothing": "#!/bin/true\n",
    CURL: (ROOT / "tests" / "bench" / "curl_tattle.sh").read_text(),
    # Knows neither the identity nor the session: that would be another two calls of curl.
    "/usr/local/bin/aws_tattle": "#!/bin/sh\nHOME=/root exec "
    f"{AWS} events put-events --region us-east-1 --entries '{json.dumps(ENTRIES)}'\n",
}


@dataclass
class Contender:
    """A hook, and what was measured of it: seconds, seconds, KiB."""

    name: str
    path: str
    arguments: Sequence[str] = ()
    sends: bool = True
    waits: list[float] = field(default_factory=list)
    arrives: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


FIRST = "tattle, the first run: nothing is unpacked"


def contenders() -> list[Contender]:
    return [
        Contender("python3 -IS -c pass", SYSTEM_PYTHON, ("-IS", "-c", "pass"), sends=False),
        Contender("a hook that does nothing", "/usr/local/bin/nothing", sends=False),
        Contender(FIRST, TATTLE),
        Contender("tattle, later", TATTLE),
        Contender("tattle, its deliverer still there", TATTLE),
        Contender("tattle --wait", TATTLE, ("--wait=30",)),
        Contender("a script with curl", CURL),
        Contender("aws events put-events", "/usr/local/bin/aws_tattle"),
    ]


def peak_kib(box: Instance, pid: int) -> int:
    """The most memory that a process inside had so far."""
    status = box.read(f"/proc/{pid}/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0


def run(box: Instance, session: Session, contender: Contender) -> None:
    count = len(box.eventbridge.entries())
    result = session.hook(path=contender.path, arguments=contender.arguments)
    assert result.returncode == 0, (contender.name, result)
    contender.waits.append(result.seconds)
    if not contender.sends:
        contender.memory.append(result.max_rss_kib)
        return
    entry = box.eventbridge.wait_for(count + 1, 30)[-1]
    contender.arrives.append(entry.arrived - result.started)
    deliverers = [peak_kib(box, process.pid) for process in box.deliverers()]
    contender.memory.append(max([result.max_rss_kib, *deliverers]))


def rest(box: Instance) -> None:
    """Until everything has gone out and no deliverer is left."""
    while box.spool():
        time.sleep(0.01)
    box.kill_deliverers()


def measure(rounds: int = ROUNDS) -> list[Contender]:
    """The contenders after so many rounds."""
    compared = contenders()
    with Instance(ARTIFACT) as box, box.session() as session:
        box.write(CA, ROOTS.read_text() + box.ca.pem.decode())
        for path, text in SCRIPTS.items():
            box.write(path, text, 0o755)
        box.write(CURL, SCRIPTS[CURL].replace("set -eu\n", f"set -eu\nCURL_TATTLE_CACERT={CA}\n"))
        box.path(CURL).chmod(0o755)
        for folder in (sys.base_prefix, sys.prefix):
            box.reveal(folder)
        for number in range(rounds + 1):
            for contender in compared:
                if not contender.name.endswith("still there"):
                    rest(box)
                if contender.name == FIRST:
                    shutil.rmtree(box.path(CACHE), ignore_errors=True)
                run(box, session, contender)
            if number == 0:  # that one filled the page cache
                compared = contenders()
    return compared


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms" if seconds else ""


def rows(rounds: int = ROUNDS) -> list[tuple[str, str, str, str]]:
    """Medians: the hook, what the login waits, hook start to arrival, the most memory."""
    return [
        (
            contender.name,
            milliseconds(contender.waits),
            milliseconds(contender.arrives),
            f"{statistics.median(contender.memory) / 1024:.0f} MiB",
        )
        for contender in measure(rounds)
    ]


HEADER = ("the hook", "the login waits", "the event is there", "memory")


def main() -> None:
    for row in (HEADER, *rows(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)):
        print(f"{row[0]:<46}" + "".join(f"{figure:>20}" for figure in row[1:]))


if __name__ == "__main__":
    main()
