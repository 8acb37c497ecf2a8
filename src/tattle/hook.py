"""The hook: accept an event on the login's path and let the login go on.

Runs as root with an environment that a user may have filled. Nothing is imported here but what the
interpreter has loaded by then: the login waits for every millisecond.
"""

import os
import time

from tattle import EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL, TattleError, log
from tattle.pam import parse, trusted_block
from tattle.spool import Spool

WAIT = 5.0  # seconds, for --wait without a number
UNVERIFIED = (b"SSH_CONNECTION=", b"SSH_AUTH_INFO_0=")
UNVERIFIED_LIMIT = 16_384  # bytes: more than sshd ever says, less than would fill a spool


def accept(arguments: "list[str]") -> "tuple[Spool | None, bytes | None]":
    """Accept the event that pam_exec tells of, and end the process: the login goes on.

    Only a child that is to deliver returns, let go of by the login: with the spool, locked, or with
    the record, where that could not be written to the spool.
    """
    environ = prepare()
    try:
        block = trusted_block(environ)
        record = block + moment(environ[: -len(block)])
        parse(record)
    except TattleError as error:
        log(str(error))
        os._exit(error.status)
    wait = patience(arguments)
    spool, name = store(record)
    child = None
    try:
        # Who holds the lock looks into the spool once more after letting go.
        if not (spool and name) or spool.lock():
            child = os.fork()
    except OSError as error:
        log(f"can't start delivery, {'the event waits' if name else 'an event is lost'}: {error}")
        os._exit(0 if name and not wait else EX_TEMPFAIL)
    if child != 0:
        os._exit(delivered(spool, name, child, wait) if wait else 0)
    detach(spool)
    return (spool, None) if name else (None, record)


def prepare() -> bytes:
    """Return the environment block as the kernel has it; empty our own, and be root all the way."""
    os.environ.clear()
    os.umask(0o077)
    if os.geteuid() == 0:
        os.setresgid(0, 0, 0)  # su keeps the caller's real ids
        os.setresuid(0, 0, 0)
    with open("/proc/self/environ", "rb", 0) as file:
        return file.readall()


def moment(untrusted: bytes) -> bytes:
    """Return, as NUL-terminated variables, what only this moment knows.

    The parent is sshd's process for this session, at its opening as at its closing; with its start
    time (clock ticks since boot, proc(5)) and the boot id it names the session. What sshd said of
    the connection comes from where a user's own variables come from.
    """
    parent = os.getppid()
    facts = [
        b"TATTLE_TIME=%d" % time.time_ns(),
        b"TATTLE_UPTIME=%d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        b"TATTLE_PARENT=%d" % parent,
        # Field 22; the command's name, field 2, may itself hold brackets and blanks.
        b"TATTLE_PARENT_START=%b"
        % b"".join(glance(f"/proc/{parent}/stat").rpartition(b")")[2].split()[19:20]),
        b"TATTLE_BOOT=%b" % glance("/proc/sys/kernel/random/boot_id").strip(),
    ]
    facts += [
        b"TATTLE_UNVERIFIED_" + variable
        for variable in untrusted.split(b"\0")
        if variable.startswith(UNVERIFIED) and len(variable) <= UNVERIFIED_LIMIT
    ]
    return b"\0".join(facts) + b"\0"


def glance(path: str) -> bytes:
    """Return what a small file of the kernel's holds, nothing if it can't be read."""
    try:
        with open(path, "rb", 0) as file:
            return file.read(4096)
    except OSError:
        return b""


def patience(arguments: "list[str]") -> float:
    """Return the seconds that --wait[=SECONDS] asks for, else 0."""
    wait = 0.0
    for argument in arguments:
        option, _, value = argument.partition("=")
        try:
            if option != "--wait":
                raise ValueError
            wait = float(value) if value else WAIT
        except ValueError:  # an event is worth more than a slip in the PAM line
            log(f"ignored on the PAM line: {argument!r} (only --wait[=SECONDS] is known there)")
    return wait


def store(record: bytes) -> "tuple[Spool | None, str | None]":
    """Put the record into the spool; return it and the record's name, as far as they exist."""
    spool = None
    for attempt in (1, 2):
        try:
            spool = spool or Spool()
            return spool, spool.accept(record)
        except (OSError, TattleError) as error:
            if attempt == 1:
                lift_limits()  # pam_limits may have set the user's on us
            else:
                log(f"can't spool, delivering from memory: {error}")
    return spool, None


def lift_limits() -> None:
    """Undo the limits that would stop root from writing a file; leave no core."""
    import resource

    nofile = (1024, max(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for limit, value in (
        (resource.RLIMIT_CORE, (0, 0)),
        (resource.RLIMIT_NOFILE, nofile),
        (resource.RLIMIT_FSIZE, free),
        (resource.RLIMIT_AS, free),
        (resource.RLIMIT_DATA, free),
        (resource.RLIMIT_CPU, free),
    ):
        try:
            resource.setrlimit(limit, value)
        except (OSError, ValueError):
            pass  # a container without CAP_SYS_RESOURCE: as good as it gets


def delivered(spool: "Spool | None", name: "str | None", child: "int | None", wait: float) -> int:
    """Wait until EventBridge has the event or the time is up; return the exit status."""
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        if spool and name:
            if not spool.has(name):
                return EX_DATAERR if spool.has("rejected/" + name) else 0
        elif child:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else EX_SOFTWARE
        time.sleep(0.005)
    return EX_TEMPFAIL


def detach(spool: "Spool | None") -> None:
    """Let go of all that ties this process to the login."""
    os.chdir("/")
    for fd in os.listdir("/proc/self/fd"):  # `pam_exec stdout` waits until its pipe is closed
        if spool is None or int(fd) != spool.fd:
            try:
                os.close(int(fd))
            except OSError:
                pass  # the one that listed the folder
    null = os.open("/dev/null", os.O_RDWR)
    while null < 2:
        null = os.dup(null)
