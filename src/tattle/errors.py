"""One kind of error: what is wrong, the exit status, what to do about it. And one line to syslog.

The place that raises an error is the only one that knows what to do about it: command line, log and
`tattle check` show its words.
"""

import posix

LONGEST_LINE = 1000  # characters; syslog(3) may drop what is much longer
# The one place that says where. A fork has this code, too: so no address.
REPORT = "please report it as an issue of the repository that you have tattle from"


class TattleError(Exception):
    """An error that a person can act on.

    status: from sysexits(3), os.EX_*, as `tattle --help` lists them; aws/errors.py has AWS's codes,
    and `tattle check` its own. advice: one line, a command where one helps; may be empty. A command
    that needs root begins with sudo: runnable().
    """

    def __init__(self, message: str, status: int, advice: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.advice = advice


class Unanswered(TattleError):  # noqa: N818
    """What was sent got no answer that says what became of it: it may have arrived."""

    def __init__(self, reason: str) -> None:
        message = f"EventBridge did not answer, the event may have arrived: {reason}"
        advice = "a proxy, a firewall or a VPC endpoint that cuts connections? sudo tattle check"
        super().__init__(message, posix.EX_UNAVAILABLE, advice)


def defect(error: Exception) -> TattleError:
    """Return the error for an exception that nobody expected."""
    advice = f"{REPORT}, with the output of: tattle --debug"
    return TattleError(f"a defect: {type(error).__name__}: {error}", posix.EX_SOFTWARE, advice)


def runnable(advice: str) -> str:
    """Return an advice with the commands as its reader can run them.

    Root's own shell needs no sudo and may have none. Under sudo the reader's shell is not root's,
    and sudo's secure_path may lack /usr/local/bin.
    """
    import os
    import re
    import sys

    if os.geteuid() == 0 and "SUDO_UID" not in os.environ:
        return re.sub(r"(?<![\w/.-])sudo ", "", advice)
    return advice.replace("sudo tattle ", f"sudo {os.path.realpath(sys.argv[0])} ")


def one_line(text: str) -> str:
    """Return text that can't forge a log line, steer a terminal or be dropped as too long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: LONGEST_LINE + 1])
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…"


def log(message: str) -> None:
    """Write one line to syslog: authpriv, as sshd does for logins."""
    import syslog  # most logins have nothing to say

    syslog.openlog("tattle", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_ERR, one_line(message))
    syslog.closelog()  # or the next socket to get this descriptor's number would get our lines
