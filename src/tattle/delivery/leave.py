"""Leaves the login that started this process, so that its user can neither hold it nor end it."""

from __future__ import annotations

import contextlib
import os
import signal

from tattle.login.hook import SIGNALS, lift_limits, reset_timer_slack

CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two
NICE = 10  # what else the machine does comes first
IONICE = ("/usr/bin/ionice", "--class=best-effort", "--classdata=7")
CPUS = 1024  # more than there are: all of them


def leave_login() -> None:
    """Leave its cgroup, session, folder, limits, signals and scheduling.

    What a container forbids is left as it is.
    """
    for hierarchy in CGROUPS:
        write(f"/sys/fs/cgroup/{hierarchy}cgroup.procs", "0")
    write("/proc/self/oom_score_adj", "0")
    reset_timer_slack()
    for number in SIGNALS:
        usual = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN)  # discards what was sent to the login
        signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError):
        os.setsid()
    os.chdir("/")
    os.umask(0o077)
    lift_limits()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, range(CPUS))
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        os.posix_spawn(IONICE[0], [*IONICE, f"--pid={os.getpid()}"], {})


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's, if it is there and ours to write. Make none."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
