"""Whether this process can have namespaces in which it can't touch the machine.

Who enters a mount namespace gets its root directory. In a chroot that is not the chroot but what
is around it: what was meant for the namespace would be done to the machine. So it is tried first,
by a process that does nothing else.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

NAMESPACES = {"mnt": "mount", "net": "net", "uts": "uts", "ipc": "ipc", "pid": "pid"}
"""As in /proc/PID/ns, and nsenter's and unshare's options for them."""

TRIAL = """\
import ctypes, os
NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
REC_PRIVATE = 0x4000 | 0x40000
libc = ctypes.CDLL(None, use_errno=True)
fdinfo = os.open("/proc/self/fdinfo", os.O_RDONLY)

def tried(what, failed):
    if failed:
        raise SystemExit(f"{what} ({os.strerror(ctypes.get_errno())})")

def root():
    fd = os.open("/", os.O_PATH)
    with open(os.open(str(fd), os.O_RDONLY, dir_fd=fdinfo)) as told:
        mount = [line for line in told if line.startswith("mnt_id:")]
    return mount, os.fstat(fd).st_dev, os.fstat(fd).st_ino

tried("namespaces", libc.unshare(NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET))
before = root()
tried("namespaces", libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), NEWNS))
if root() != before:
    raise SystemExit("a root directory that is no chroot (entering a namespace leaves one)")
tried("mounts", libc.mount(b"none", b"/", None, REC_PRIVATE, None))
tried("mounts", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
"""


@functools.cache
def missing() -> str:
    """What a throwaway instance would need and this process doesn't have; "" if nothing."""
    if os.geteuid() != 0:
        return "root"
    try:
        own_proc = os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        own_proc = False
    if not own_proc:
        return "a /proc of the process's own pid namespace"
    done = subprocess.run([sys.executable, "-IS", "-c", TRIAL], capture_output=True, text=True)
    told = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return told[-1] if done.returncode else ""
