"""What a login may have left a process with, undone: limits, a cgroup, the timer slack.

Imported on the login's path: nothing but what the interpreter has loaded by then.
"""

import posix

TIMER_SLACK_NS = b"50000"  # the kernel's own
CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two


def lift_limits() -> None:
    """Undo the limits that would stop root from writing a file or starting Python; no core."""
    import resource

    free = resource.RLIM_INFINITY
    for limit, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 1024, max(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        (resource.RLIMIT_STACK, 8 * 1024**2, free),
        (resource.RLIMIT_FSIZE, free, free),
        (resource.RLIMIT_AS, free, free),
        (resource.RLIMIT_DATA, free, free),
        (resource.RLIMIT_CPU, free, free),
    ):
        try:
            resource.setrlimit(limit, (soft, hard))
        except (OSError, ValueError):  # a container without CAP_SYS_RESOURCE: as far as it goes
            allowed = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (allowed, allowed))


def leave_cgroups() -> None:
    """Leave the login's cgroup.

    The kernel moves none before each CPU has switched tasks, which takes some 10 ms: favordynmods
    in https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    for hierarchy in CGROUPS:
        write(f"/sys/fs/cgroup/{hierarchy}cgroup.procs", b"0")


def reset_timer_slack() -> None:
    """Let sleeps end in time: a caller's timer slack, which su hands on, can be years."""
    write("/proc/self/timerslack_ns", TIMER_SLACK_NS)


def write(path: str, value: bytes) -> None:
    """Write to a file of the kernel's, if it is there and ours to write. Make none."""
    try:
        fd = posix.open(path, posix.O_WRONLY)
        try:
            posix.write(fd, value)
        finally:
            posix.close(fd)
    except OSError:
        pass
