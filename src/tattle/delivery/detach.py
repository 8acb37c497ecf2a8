"""Detaches this process from the login that started it: its user can neither hold nor end it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys

import tattle
from tattle.delivery.leave_cgroup import LEAVING
from tattle.errors import TattleError
from tattle.login.hook import SIGNALS
from tattle.login.process import lift_limits, write

NICE = 10  # what else the machine does comes first
CPUS = 8192  # all of them: the most that Linux has, CONFIG_NR_CPUS
# What delivering takes, rounded up. With less, it would hold everybody's events and fail.
NEEDED = {
    "descriptors": (resource.RLIMIT_NOFILE, 64),
    "address space": (resource.RLIMIT_AS, 512 * 1024**2),
    "data": (resource.RLIMIT_DATA, 256 * 1024**2),
    "file size": (resource.RLIMIT_FSIZE, 8 * 1024**2),
    "stack": (resource.RLIMIT_STACK, 1024**2),
}
# Linux's numbers for clone(), by machine, and for close_range(), which is 5.9's
CLONE = {"x86_64": 56, "aarch64": 220}
CLOSE_RANGE = 436
CLONE_FILES, CLONE_VFORK = 0x400, 0x4000
CLOSE_RANGE_UNSHARE = 2
FIRST_INHERITED, LAST_INHERITED = 3, 2**32 - 1  # descriptors


def detach() -> None:
    """Leave the login's cgroup, session, files, directory, limits, signals and scheduling.

    What a container forbids is left as it is. Raises TattleError if that leaves too little.
    """
    with LEAVING:  # until the thread has left the cgroup
        pass
    write("/proc/self/oom_score_adj", b"0")
    with contextlib.suppress(OSError):  # it leads a session already
        os.setsid()
    for number in SIGNALS:
        usual = signal.SIG_DFL if number == signal.SIGHUP else signal.getsignal(number)  # by env
        signal.signal(number, signal.SIG_IGN)  # discards what was sent to the login
        signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.chdir("/")
    os.umask(0o077)
    lift_limits()
    require_limits()
    drop_inherited_files()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(CPUS))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def require_limits() -> None:
    """Raise TattleError if a limit that could not be lifted leaves too little to deliver."""
    for name, (limit, needed) in NEEDED.items():
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and soft < needed:
            message = f"a login's limit of {soft} for {name} can't be lifted: {needed} are needed"
            raise TattleError(message, os.EX_UNAVAILABLE, "sudo tattle flush")


def drop_inherited_files() -> None:
    """Leave what the login had open, however high its number. Go on in a new process if need be.

    close() tells a FUSE file system, which may be any user's: if that does not answer, no signal
    ends the wait. A child that shares the table of descriptors, and then unshares it without
    them, never closes any; until then its parent must not end, so that the table is shared.
    """
    ours = {0, 1, 2, *map(int, re.findall("^/proc/self/fd/([0-9]+)/", tattle.__path__[0]))}
    inherited = []
    for fd in {*map(int, os.listdir("/proc/self/fd"))} - ours:
        with contextlib.suppress(OSError):  # that of the listing
            if os.get_inheritable(fd):
                inherited.append(fd)
            else:
                os.close(fd)  # the archive, opened by the `#!` line
    if not inherited:
        return
    machine = os.uname().machine
    if machine in CLONE:
        import ctypes

        libc = ctypes.CDLL(None)
        if libc.syscall(CLONE[machine], CLONE_FILES | CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0):
            os._exit(0)  # also where there can't be a child: the event waits for the next login
        if libc.syscall(CLOSE_RANGE, FIRST_INHERITED, LAST_INHERITED, CLOSE_RANGE_UNSHARE) == 0:
            os.execve(sys.argv[0], sys.argv, {})
    for fd in inherited:  # that has to do on other machines, and before Linux 5.9
        with contextlib.suppress(OSError):
            os.close(fd)
