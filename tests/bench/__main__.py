"""All measurements in one table, from one run: `./build.sh bench [ROUNDS]`, as root.

Each part can be run by itself: `python tests/bench/PART.py`. For what a part measures, and how, see
there.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "src"))

from bench import delivery, fleet, hook, smoke, stages
from support import ARTIFACT

ROUNDS = 15
BUSY_SECONDS = 60.0
AWS_PACKAGES = ("awscli", "botocore", "s3transfer", "urllib3", "docutils", "rsa", "colorama")
Table = Iterator[Sequence[str]]


def machine() -> str:
    """What all of it was measured on."""
    model = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = model[0].partition(": ")[2] if model else platform.machine()
    python = os.path.realpath("/usr/bin/python3")
    return f"{os.cpu_count()} CPUs, {processor}, Linux {platform.release()}, {python}"


def size(*paths: Path) -> str:
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e3:.0f} kB"


def sizes() -> Table:
    """What there is to install."""
    packages = delivery.ROOTS.parents[1]
    aws = [packages / name for name in AWS_PACKAGES]
    yield "tattle", size(ARTIFACT)
    yield "a script with curl", size(Path(__file__).with_name("curl_tattle.sh"))
    yield "the AWS CLI", size(*(path for path in aws if path.exists()))


def table(rounds: int) -> Iterator[tuple[str, Table]]:
    """The parts, each with its title."""
    yield (
        f"The hook as a login runs it, {rounds} rounds in turns: the login waits, the event is"
        " there, memory",
        iter(delivery.rows(rounds)),
    )
    yield (
        f"Where the time goes to the event's arrival, {rounds} rounds",
        iter(stages.rows(rounds)),
    )
    yield (
        f"What was taken out of that, put back, {rounds} rounds in turns",
        iter(stages.savings(rounds)),
    )
    yield "The size of what is installed", sizes()
    yield (
        f"The smoke test, {rounds} rounds in turns: median, middle half, share of the AWS CLI's",
        iter(smoke.rows(rounds)),
    )
    yield "The hook and its deliverer: measured, the limit set", busy()
    yield (
        f"A simulated fleet of {fleet.INSTANCES} after an hour without EventBridge:"
        f" {', '.join(fleet.HEADER)}",
        iter(fleet.rows()),
    )


def busy() -> Table:
    for what, measured, limit, kept in hook.rows(BUSY_SECONDS):
        yield what, measured, limit, "" if kept else "NO"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(machine())
    for title, rows in table(rounds):
        print(f"\n{title}", flush=True)
        for name, *figures in rows:
            print(f"  {name:<58}" + "".join(f"{figure:>16}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
