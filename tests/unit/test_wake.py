"""A deliverer sleeps until something is accepted, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
# In a process of its own: the signal is blocked in all of its threads.
SLEEPER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tattle.delivery import wake
if sys.argv[4]:
    wake.fcntl.fcntl = lambda *_: os.close(-1)  # fails, as where the kernel has no F_NOTIFY
fd = os.open(sys.argv[2], os.O_RDONLY)
alarm = wake.Alarm([fd])
os.listdir(fd)
for _ in range(2):
    print("asleep", flush=True)
    began = time.monotonic()
    print(alarm.sleep(float(sys.argv[3])), time.monotonic() - began, flush=True)
"""


def sleep(
    directory: Path, seconds: float, *changes: str, untold: str = ""
) -> list[tuple[str, float]]:
    """What each of two sleeps returns, and how long it takes, with those changes meanwhile."""
    found = []
    command = [sys.executable, "-c", SLEEPER, str(SOURCE), str(directory), str(seconds), untold]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        for change in (*changes, "", "")[:2]:
            assert running.stdout.readline() == "asleep\n"
            if change == "accept":
                (directory / "new").write_text("")
                os.rename(directory / "new", directory / "00000001759276800000-1")
            elif change == "make":
                (directory / ".wake").touch()
            elif change == "remove":
                (directory / "old").unlink()
            changed, took = running.stdout.readline().split()
            found.append((changed, float(took)))
    return found


@pytest.mark.parametrize("change", ["accept", "make"])
def test_what_is_accepted_or_asked_for_ends_it(change: str, tmp_path: Path) -> None:
    """Also after the directory was listed, and each time anew."""
    for changed, took in sleep(tmp_path, 60, change, "accept"):
        assert changed == "True"
        assert took < 20


def test_what_is_removed_does_not(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    first, second = sleep(tmp_path, 0.5, "remove")
    assert first[0] == second[0] == "False"
    assert min(first[1], second[1]) >= 0.45


def test_it_ends_now_and_then_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    for changed, took in sleep(tmp_path, 60, untold="yes"):
        assert changed == "True"
        assert took < 20
