"""How long the smoke test takes, as a whole process, beside `aws events put-events`.

Both get the role's credentials from IMDS and publish one event; tattle asks for the identity
document, too. The stand-ins are processes of their own, and the commands take turns, so that what
else the machine does falls on all of them alike. Run by hand: `python tests/bench/smoke.py [RUNS]`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import ARTIFACT, ROOT, clean_environment

RUNS = 21
AWS = Path(sys.executable).with_name("aws")
TARGET = 0.6  # of the time that `aws events put-events` takes

ENTRY = {
    "Source": "com.unbounce.tattle",
    "DetailType": "SSH connection event detected",
    "Resources": ["arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"],
    "Detail": json.dumps({"username": "test", "remote_host": "test", "session": "opened"}),
}
COMMANDS: Mapping[str, Sequence[str]] = {
    "tattle": [str(ARTIFACT)],
    "tattle, by the Python that runs aws": [sys.executable, "-IS", str(ARTIFACT)],
    "aws events put-events": [str(AWS), "events", "put-events", "--entries", json.dumps([ENTRY])],
}
YARDSTICK = "aws events put-events"


@contextmanager
def stand_in(name: str) -> Iterator[str]:
    """Run one of the stand-ins as a process; its URL."""
    command = [sys.executable, str(ROOT / f"tests/standins/{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """How long the command takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure(runs: int = RUNS) -> dict[str, list[float]]:
    """The seconds that each command took, run after run."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tattle-bench-")))
        environment = {
            **clean_environment(home),
            "AWS_DEFAULT_REGION": "us-east-1",  # what tattle finds out, and aws must be told
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": stack.enter_context(stand_in("imds")),
            "AWS_ENDPOINT_URL_EVENTBRIDGE": stack.enter_context(stand_in("eventbridge")),
            "PAM_TYPE": "open_session",
            "PAM_USER": "test",
            "PAM_RHOST": "test",
        }
        for command in COMMANDS.values():
            seconds(command, environment)  # unpacks, compiles, fills the page cache
        taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(runs):
            for name, command in COMMANDS.items():
                taken[name].append(seconds(command, environment))
        return taken


def rows(runs: int = RUNS) -> list[tuple[str, str, str, str]]:
    """The command, its median in ms, the middle half of its runs, its share of the yardstick."""
    taken = measure(runs)
    yardstick = statistics.median(taken[YARDSTICK])
    table = []
    for name, times in taken.items():
        low, median, high = (1000 * quartile for quartile in statistics.quantiles(times, n=4))
        share = f"{median / 1000 / yardstick:.2f}"
        table.append((name, f"{median:.0f} ms", f"{low:.0f} to {high:.0f} ms", share))
    return table


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    table = rows(runs)
    print(f"{runs} runs of each, in turns: median, middle half, share of {YARDSTICK}")
    for name, *figures in table:
        print(f"{name:<36}" + "".join(f"{figure:>16}" for figure in figures))
    worst = max(float(share) for name, *_, share in table if name != YARDSTICK)
    print(f"to be at most {TARGET}: {'yes' if worst <= TARGET else 'NO'}")
    return 0 if worst <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
