"""A disk of the throwaway instance's that can lose power: what was not written to it is gone then.

It is a file of the machine's behind a loop device. What the kernel has written to the file is what
a disk would have; all else is in the kernel's memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from standins.instance import TATTLE, Instance

MEGABYTES = 16
# ext4 writes what nobody has asked for every five seconds, unless told otherwise: not before the
# test's end.
OPTIONS = "commit=300,noatime"
SETTLE_SECONDS = 0.05  # in which the file has what was being written
SPARE = "/mnt"  # where what a disk had is looked at


class Disk:
    """The file system at a path of the instance's. A context manager: mounted while entered."""

    def __init__(self, box: Instance, path: str, image: Path) -> None:
        self.box, self.path, self.image = box, path, image
        self._mounted = ExitStack()

    def __enter__(self) -> Disk:
        with open(self.image, "wb") as file:
            file.truncate(MEGABYTES * 1024**2)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self._mounted.enter_context(mounted(self.box, self.image, self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self._mounted.close()

    def copy_at_power_cut(self) -> Path:
        """What the disk would have if the power went now, as an image; tattle goes on afterwards.
        No login may be under way."""
        copy = self.image.with_name(f"{self.image.name}-{time.monotonic_ns()}")
        running = [f"{one.pid}" for one in self.box.processes(TATTLE)]
        self.box.run(["kill", "-STOP", *running])
        time.sleep(SETTLE_SECONDS)
        shutil.copy(self.image, copy)
        self.box.run(["kill", "-CONT", *running])
        return copy

    @contextmanager
    def mounted_copy(self, copy: Path) -> Iterator[Path]:
        """What is on such an image: where it is mounted, as the machine reaches it."""
        with mounted(self.box, copy, SPARE):
            yield self.box.path(SPARE)

    def lose_power(self) -> None:
        """Kill everything, and come up again with what the disk had."""
        copy = self.copy_at_power_cut()
        self._mounted.close()
        self._mounted.enter_context(mounted(self.box, copy, self.path))


@contextmanager
def mounted(box: Instance, image: Path, path: str) -> Iterator[None]:
    """The image's file system at a path of the instance's, whose processes end with it."""
    told = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=True
    )
    device = told.stdout.strip()
    try:
        number = os.minor(os.stat(device).st_rdev)
        box.run(["mknod", "-m", "600", device, "b", "7", f"{number}"])
        box.run(["mount", "-t", "ext4", "-o", OPTIONS, device, path], check=True)
        try:
            yield
        finally:
            box.kill_deliverers()
            box.run(["umount", "--lazy", path], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def missing() -> str:
    """What this machine lacks for it; "" if nothing."""
    if not os.path.exists("/dev/loop-control"):
        return "loop devices"
    lacking = [tool for tool in ("losetup", "mkfs.ext4") if not shutil.which(tool)]
    return ", ".join(lacking)
