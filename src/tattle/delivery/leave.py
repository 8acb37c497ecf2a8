"""Leaves the login that started this process, so that its user can neither hold it nor end it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading

from tattle.login.hook import SIGNALS, lift_limits, reset_timer_slack, write

CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two
NICE = 10  # what else the machine does comes first
# Python can't undo the idle class that a caller of su may have set.
IONICE = ("/usr/bin/ionice", "--class=best-effort", "--classdata=7")
CPUS = 8192  # all of them: the most that Linux has, CONFIG_NR_CPUS


def begin_to_leave() -> None:
    """Start what takes time without taking CPU, and let the caller import in the meantime.

    The imports leave no garbage, and to look for it takes 8 ms: whoever has imported enables that.
    """
    gc.disable()
    reset_timer_slack()  # Python's threads wait for one another by timers
    try:
        MOVE.start()
    except RuntimeError:  # the user's cgroup may hold no more threads
        move()


def move() -> None:
    """Leave the login's cgroup and its I/O class.

    The kernel moves none before each CPU has switched tasks, which takes some 10 ms: favordynmods
    in https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    for hierarchy in CGROUPS:
        write(f"/sys/fs/cgroup/{hierarchy}cgroup.procs", b"0")
    with contextlib.suppress(OSError):
        os.waitpid(os.posix_spawn(IONICE[0], [*IONICE, f"--pid={os.getpid()}"], {}), 0)


MOVE = threading.Thread(target=move)


def leave_login() -> None:
    """Leave its cgroup, session, folder, limits, signals and scheduling.

    What a container forbids is left as it is.
    """
    if MOVE.is_alive():
        MOVE.join()
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
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(CPUS))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
