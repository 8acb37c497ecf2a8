"""What the kernel says of processes and this machine; and what a login may have left a process
with, undone: limits, a cgroup, the timer slack.

Imported on the login's path: nothing but what the interpreter has loaded by then.
"""

import posix

TIMER_SLACK_NS = b"50000"  # the kernel's own
CGROUPS = ("", "unified/", "systemd/")  # below /sys/fs/cgroup: one hierarchy, or a hybrid's two

USERS_OWN_CGROUP = b"/user@"  # a user's service manager: what is below, they can freeze or kill
LIMITS = (b"Max cpu time ", b"Max file size ", b"Max data size ", b"Max address space ")
# Where an instance finds its id without asking IMDS: Nitro's firmware has it ("Identify EC2
# instances" in the EC2 user guide), and cloud-init says it at each boot, also on Xen. (What is in
# /var/lib/cloud may be an image's, where cloud-init is off: then all records would be set aside.)
INSTANCE_ID = ("/sys/class/dmi/id/board_asset_tag", "/run/cloud-init/.instance-id")


def read(path: str) -> bytes:
    """Return what a file of the kernel's holds. Raises OSError."""
    with open(path, "rb", 0) as file:
        return file.readall()


def stat_fields(pid: int) -> "list[bytes]":
    """Return what /proc/PID/stat says from field 3 on, the state: proc(5). Raises OSError.

    The command's name, field 2, may itself hold brackets and blanks.
    """
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def start_time(pid: int) -> bytes:
    """Return when a process started, in clock ticks since boot; nothing if that can't be read.

    Nothing, too, of one that has ended, and that nobody has waited for.
    """
    try:
        state, *fields = stat_fields(pid)
    except (OSError, ValueError):
        return b""
    return b"" if state in b"ZX" else fields[18]


def is_roots(pid: int) -> bool:
    """Tell whether a process runs as root, by its effective user: proc(5), status."""
    try:
        return read(f"/proc/{pid}/status").partition(b"\nUid:")[2].split()[1] == b"0"
    except OSError:
        return False  # it has ended


def boot_id() -> bytes:
    """Return what names this run of the machine; nothing if that can't be read."""
    try:
        return read("/proc/sys/kernel/random/boot_id").strip()
    except OSError:
        return b""


def machine() -> "list[bytes]":
    """Return which machine this is, as variables: its host name and, if it can tell, instance id.

    A record may be found by another machine: one that was started from this one's image.
    """
    facts = [b"TATTLE_HOST=" + posix.uname().nodename.encode("utf-8", "surrogateescape")]
    for path in INSTANCE_ID:
        try:
            found = read(path).strip()
        except OSError:
            continue
        if found[:2] == b"i-" and found[2:] and not found[2:].strip(b"0123456789abcdef"):
            facts.append(b"TATTLE_INSTANCE=" + found)
            break
    return facts


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


def free_process() -> None:
    """Undo what would stop or freeze a deliverer as it starts: only su and sudo hand that on.

    (To ask the kernel for limits by the resource module takes ten times as long.)
    """
    limits = read("/proc/self/limits").splitlines()
    limited = any(line.startswith(LIMITS) and line.count(b"unlimited") < 2 for line in limits)
    if limited:
        lift_limits()
    if USERS_OWN_CGROUP in read("/proc/self/cgroup"):
        leave_cgroups()  # which takes 10 ms


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
