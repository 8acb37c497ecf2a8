"""The process around the hook: its limits, its ties to the login, and waiting for the deliverer.

Apart from hook.py, since most logins go on without any of it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

from tattle import EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL, TattleError
from tattle.__main__ import PYTHON
from tattle.hook import UNVERIFIED
from tattle.log import log
from tattle.pam import trusted_block
from tattle.spool import Spool

WAIT = 5.0  # seconds, for --wait without a number
LONGEST_WAIT = 600.0  # seconds
GLANCE = 0.005  # seconds between two looks while --wait waits


def lift_limits() -> None:
    """Undo the limits that would stop root from writing a file; leave no core."""
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for limit, value in (
        (resource.RLIMIT_CORE, (0, 0)),
        (resource.RLIMIT_NOFILE, (1024, max(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))),
        (resource.RLIMIT_FSIZE, free),
        (resource.RLIMIT_AS, free),
        (resource.RLIMIT_DATA, free),
        (resource.RLIMIT_CPU, free),
    ):
        try:
            resource.setrlimit(limit, value)
        except (OSError, ValueError):
            pass  # a container without CAP_SYS_RESOURCE: as good as it gets


def store_without_limits(record: bytes) -> tuple[Spool | None, str | None]:
    """Do as hook.store() once more, without what pam_limits may have set for the user."""
    lift_limits()
    spool = None
    try:
        spool = Spool()
        return spool, spool.accept(record)
    except (OSError, TattleError) as error:
        log(f"can't spool, delivering from memory: {error}")
        return spool, None


def patience(arguments: list[str]) -> float:
    """Return the seconds that --wait[=SECONDS] asks for, else 0."""
    wait = 0.0
    for argument in arguments:
        option, _, value = argument.partition("=")
        try:
            if option != "--wait":
                raise ValueError
            wait = float(value) if value else WAIT
            if not 0 < wait <= LONGEST_WAIT:
                raise ValueError
        except ValueError:  # an event is worth more than a slip in the PAM line
            wait = 0.0
            log(f"ignored on the PAM line: {argument!r}, expected --wait[=SECONDS], at most 600")
    return wait


def start_anew() -> None:
    """Run the hook again with what it needs of an environment that takes seconds to empty."""
    with open("/proc/self/environ", "rb", 0) as file:
        environ = file.readall()
    block = trusted_block(environ)
    kept = [v for v in environ[: -len(block)].split(b"\0") if v.startswith(UNVERIFIED)]
    variables = [v.partition(b"=") for v in [*kept, *block.split(b"\0")[:-1]]]
    environment = {name: value for name, _, value in variables}
    os.execve(PYTHON, [PYTHON, "-ISXutf8", *sys.argv], environment)


def delivered(spool: Spool | None, name: str | None, child: int | None, seconds: float) -> int:
    """Wait until EventBridge has the event or the time is up; return the exit status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if spool and name:
            if not _exists(spool, name):
                return EX_DATAERR if _exists(spool, f"rejected/{name}") else 0
        elif child:
            try:
                ended, status = os.waitpid(child, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD was ignored before we came
                return EX_TEMPFAIL
            if ended:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else EX_SOFTWARE
        time.sleep(GLANCE)
    return EX_TEMPFAIL


def _exists(spool: Spool, name: str) -> bool:
    try:
        os.stat(name, dir_fd=spool.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def leave_login(spool: Spool | None) -> None:
    """Become a background process: let go of the login's descriptors, limits, signals, priority."""
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
    lift_limits()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.nice(10)
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"  # resolv.conf(5): a dead name server
