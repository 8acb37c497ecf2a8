"""The hook: accept an event on the login's path and let the login go on.

Runs as root with an environment that a user may have filled. Nothing is imported here but what the
interpreter has loaded by then: the login waits for every millisecond.
"""

import os
import time

from tattle import EX_SOFTWARE, EX_TEMPFAIL, TattleError
from tattle.pam import trusted_block
from tattle.spool import Spool

MANY = 1000  # variables; unsetting each is quadratic, and a user can bring 60,000
UNVERIFIED = (b"SSH_CONNECTION=", b"SSH_AUTH_INFO_0=")
UNVERIFIED_LIMIT = 16_384  # bytes: more than sshd ever says, less than would fill a spool


def main(arguments: "list[str]") -> int:
    """Accept the event, let the login go on, and deliver. Return the exit status."""
    try:
        spool, record = accept(arguments)  # only a deliverer comes back
        from tattle.unpack import unpack

        try:
            unpack()  # first, as what comes from there is compiled
        except Exception:
            pass  # deliver.py tries again, and tells
        from tattle.deliver import in_background

        return in_background(spool, record)
    except Exception as error:
        import syslog  # not by way of log.py: it may be the archive that can't be read

        syslog.openlog("tattle", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
        syslog.syslog(syslog.LOG_ERR, ascii(f"a defect: {type(error).__name__}: {error}")[1:-1])
        return EX_SOFTWARE


def accept(arguments: "list[str]") -> "tuple[Spool | None, bytes | None]":
    """Accept the event that pam_exec tells of, and end the process: the login goes on.

    Only a child that is to deliver returns, let go of by the login: with the spool, locked, or with
    the record, where that could not be written to the spool.
    """
    try:
        environ = prepare()
        block = trusted_block(environ)
        record = block + moment(environ[: -len(block)])
    except TattleError as error:
        from tattle.log import log

        log(str(error))
        os._exit(error.status)
    wait = 0.0
    if arguments:
        from tattle.process import patience

        wait = patience(arguments)
    spool, name = store(record)
    child = None
    try:
        # Who holds the lock looks into the spool once more after letting go.
        if not (spool and name) or spool.lock():
            child = os.fork()
    except OSError as error:
        from tattle.log import log

        log(f"can't start delivery, {'the event waits' if name else 'an event is lost'}: {error}")
        os._exit(0 if name and not wait else EX_TEMPFAIL)
    if child != 0:
        if not wait:
            os._exit(0)
        from tattle.process import delivered

        os._exit(delivered(spool, name, child, wait))
    from tattle.process import leave_login

    leave_login(spool)
    return (spool, None) if name else (None, record)


def prepare() -> bytes:
    """Return the environment block as the kernel has it; empty our own, and be root all the way."""
    if len(os.environ) > MANY:
        from tattle.process import start_anew

        start_anew()
    for name in list(os.environb):
        try:
            del os.environb[name]
        except OSError:
            pass  # no name at all: nobody can ask for it
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


def store(record: bytes) -> "tuple[Spool | None, str | None]":
    """Put the record into the spool; return it and the record's name, as far as they exist."""
    try:
        spool = Spool()
        return spool, spool.accept(record)
    except (OSError, TattleError):
        from tattle.process import store_without_limits

        return store_without_limits(record)
