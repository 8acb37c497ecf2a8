"""Leaves the login that started this process, so that its user can neither hold it nor end it."""

from __future__ import annotations

import contextlib
import os
import signal

from tattle.login.hook import SIGNALS, lift_limits, reset_timer_slack, write

CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two
NICE = 10  # what else the machine does comes first
# Python can't undo the idle class that a caller of su may have set.
IONICE = ("/usr/bin/ionice", "--class=best-effort", "--classdata=7")
CPUS = 8192  # all of them: the most that Linux has, CONFIG_NR_CPUS


def leave_login() -> None:
    """Leave its cgroup, session, folder, limits, signals and scheduling.

    What a container forbids is left as it is.
    """
    for hierarchy in CGROUPS:
        write(f"/sys/fs/cgroup/{hierarchy}cgroup.procs", b"0")
    write("/proc/self/oom_score_adj", b"0")
    reset_timer_slack()
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
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(CPUS))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    with contextlib.suppress(OSError):
        os.waitpid(os.posix_spawn(IONICE[0], [*IONICE, f"--pid={os.getpid()}"], {}), 0)
