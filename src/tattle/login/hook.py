"""The hook: accept an event, see to it that somebody delivers, let the login go on.

Runs as root, with an environment, limits and a directory that a user may have chosen, and the login
waits for every millisecond: nothing is imported here but what the interpreter has loaded by then.
"""

import _signal  # type: ignore[import-not-found]  # signal itself takes milliseconds
import posix
import sys
import time

from tattle.login import process
from tattle.login.pam import TYPES, trusted_block
from tattle.login.spool import EMERGENCY_PATH, PATH, REJECTED, Spool

UNVERIFIED = (b"SSH_CONNECTION=", b"SSH_AUTH_INFO_0=")
UNVERIFIED_LIMIT = 16_384  # bytes of one of those where records wait in memory
WAIT_SECONDS = 5.0  # for --wait without a number
LONGEST_WAIT_SECONDS = 600.0
POLL_SECONDS = 0.005  # between two looks while --wait waits
FROM_TERMINAL = (1, 2, 3, 20)  # SIGHUP, SIGINT, SIGQUIT, SIGTSTP
# All signals but SIGKILL and SIGSTOP, and glibc's own two
SIGNALS = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]


def main(arguments: "list[str]") -> int:
    """Accept the event, start a deliverer, and end the process: the login goes on."""
    status = posix.EX_SOFTWARE
    try:
        status = run(arguments)
    except Exception as error:
        try:
            status = log_error(error)
        except Exception:
            pass  # nothing can be opened, not even the log: pam_exec logs the status
    posix._exit(status)  # Python's own shutdown takes a millisecond


def log_error(error: Exception) -> int:
    """Log what went wrong; return the exit status."""
    from tattle.errors import TattleError, defect, log, one_line

    known = error if isinstance(error, TattleError) else defect(error)
    log(str(known))
    try:
        # Under PAM nobody sees this; in a shell, with PAM_SERVICE exported, somebody does.
        posix.write(2, f"tattle: {one_line(str(known))} → {known.advice}\n".encode())
    except OSError:
        pass
    return known.status


def log(message: str) -> None:
    """Write a line to the log, if that can be done: where no file can be opened, nor can this."""
    try:
        from tattle import errors  # most logins have nothing to say

        errors.log(message)
    except Exception:
        pass


def run(arguments: "list[str]") -> int:
    """Accept the event, start a deliverer; return the exit status. Raises TattleError."""
    posix.umask(0o077)
    for number in FROM_TERMINAL:  # a user of su need not have permission to send those
        _signal.signal(number, _signal.SIG_IGN)
    if posix.geteuid() == 0:
        posix.setresgid(0, 0, 0)  # su keeps the caller's real ids
        posix.setresuid(0, 0, 0)
    environ = process.read("/proc/self/environ")
    block = trusted_block(environ)
    record = block + context(environ[: -len(block)], application(block))
    seconds = seconds_to_wait(arguments) if arguments else 0.0
    spool, name = store(record)
    try:
        start_deliverer(spool)
    except Exception as error:
        log(f"can't start a deliverer, the event waits for the next login: {error}")
        sync(spool, name)
        return posix.EX_TEMPFAIL if seconds else 0
    return wait_for_delivery(spool, name, seconds) if seconds else 0


def application(block: bytes) -> int:
    """Return the id of the process that this session is: our parent, sshd's process for it, say.

    If that was killed, by the kernel for its memory or by su's caller, process 1 is our parent by
    now, or one of the caller's. Then a session that opens is this process, which will end, so that
    the ledger closes it; and of one that closes nobody knows, 0: the ledger does.
    """
    parent = posix.getppid()
    adopted = parent == 1 and not block.startswith(
        b"PAM_SERVICE=" + process.read("/proc/1/comm").strip()
    )
    if adopted or not process.is_roots(parent):
        return posix.getpid() if block.endswith(TYPES[0]) else 0
    return parent


def context(untrusted: bytes, parent: int) -> bytes:
    """Return, as NUL-terminated variables, what can't be found out later.

    The parent is the same process at the session's opening as at its closing; with its start time
    (clock ticks since boot, proc(5)) and the boot id it names the session. What sshd said of the
    connection comes from where a user's own variables come from.
    """
    of_sshd = [variable for variable in untrusted.split(b"\0") if variable.startswith(UNVERIFIED)]
    facts = [
        *(b"TATTLE_UNVERIFIED_" + variable for variable in of_sshd),
        b"TATTLE_TIME=%d" % time.time_ns(),
        b"TATTLE_UPTIME=%d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        b"TATTLE_PARENT=%d" % parent,
        b"TATTLE_PARENT_START=" + process.start_time(parent),
        *process.machine(),
        b"TATTLE_BOOT=" + process.boot_id(),  # the last one: pam.is_whole()
    ]
    return b"\0".join(facts) + b"\0"


def store(record: bytes) -> "tuple[Spool, str]":
    """Put the record into the spool; return that and the record's name.

    Raises TattleError, which holds the record, if it can't be written anywhere.
    """
    messages = {}
    for path in (PATH, PATH, EMERGENCY_PATH):
        try:
            spool = Spool(path)
            name = spool.accept(record if path == PATH else brief(record))
        except Exception as error:
            messages[path] = f"{path}: {error}"
            process.lift_limits()  # pam_limits may have set some for the user: once more without
        else:
            if path == EMERGENCY_PATH:
                log(f"an event waits in {path}, which a reboot empties: {messages[PATH]}")
            return spool, name
    from tattle.errors import TattleError

    message = f"an event is lost: {'; '.join(messages.values())}: {record!r}"
    raise TattleError(message, posix.EX_CANTCREAT, "sudo tattle check")


def brief(record: bytes) -> bytes:
    """Return the record without a large variable of sshd's: a certificate may have 100 kB."""
    return b"\0".join(
        variable
        for variable in record.split(b"\0")
        if len(variable) <= UNVERIFIED_LIMIT or not variable.startswith(b"TATTLE_UNVERIFIED_")
    )


def start_deliverer(spool: Spool) -> None:
    """Start a process that delivers, and takes over from a deliverer that fails. Raises OSError.

    It inherits nothing from the login, and takes a lock only once it is detached: until then the
    user can stop it. Where a standby lives, none is started.
    """
    standby, start = spool.standby()
    if standby and process.start_time(standby) == start:
        return
    process.free_process()
    archive = sys.argv[0]
    posix.posix_spawn(
        archive,
        [archive, "deliver", spool.path],
        {},
        file_actions=[
            (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDWR, 0),
            (posix.POSIX_SPAWN_DUP2, 0, 1),
            (posix.POSIX_SPAWN_DUP2, 0, 2),
        ],
        setsigmask=SIGNALS,  # logind's SIGTERM and a user's signals, until it is detached
        setsigdef=SIGNALS,
    )


def sync(spool: Spool, name: str) -> None:
    """Have a record on disk that no deliverer looks after. The login waits."""
    try:
        spool.sync([name])
    except OSError as error:
        log(f"can't be sure that an event is on disk: {error}")


def seconds_to_wait(arguments: "list[str]") -> float:
    """Return the seconds that --wait[=SECONDS] asks for, else 0."""
    seconds = 0.0
    for argument in arguments:
        option, _, value = argument.partition("=")
        try:
            seconds = float(value or WAIT_SECONDS)
        except ValueError:
            seconds = 0.0
        if option != "--wait" or not 0 < seconds <= LONGEST_WAIT_SECONDS:
            seconds = 0.0  # a mistake in the PAM line must not cost the event
            expected = f"expected --wait[=SECONDS], at most {LONGEST_WAIT_SECONDS:.0f}"
            log(f"ignored on the PAM line: {argument!r}, {expected}")
    return seconds


def wait_for_delivery(spool: Spool, name: str, seconds: float) -> int:
    """Wait until EventBridge has the event or the time is up; return the exit status."""
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)  # accepted: a shutdown need not wait for this
    process.reset_timer_slack()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not spool.holds(name):
            return posix.EX_DATAERR if spool.holds(f"{REJECTED}/{name}") else 0
        time.sleep(POLL_SECONDS)
    return posix.EX_TEMPFAIL
