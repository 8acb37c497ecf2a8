"""The second witness: which sessions logind knows, and which of those nobody reported.

A hook can be kept from running: an environment too large for execve(2), no process id left, a
SIGKILL. logind is told of a session by another module, pam_systemd. It is asked by its own tool,
loginctl(1), since its files are private; where there is none, or no answer, nothing is known.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from tattle.delivery.records import new_record

LOGINCTL = "/bin/loginctl"  # not in /usr/bin where the two are not one, as on an upgraded Debian 11
LOGIND = "/run/systemd/sessions"  # is there where a logind runs
# For all that is asked of logind in one look. It takes some 15 ms, of a CPU that is free
LOGINCTL_SECONDS = 5.0
GRACE_SECONDS = 60.0  # within which a hook has long reported its session
PROPERTIES = ("Id", "Name", "RemoteHost", "Service", "Leader", "TimestampMonotonic", "TTY")


class LogindSession(NamedTuple):
    """A session as logind knows it."""

    id: str
    user: str
    remote_host: str  # "" if it is a local one
    service: str  # PAM's
    leader: int  # the process that opened it, and that is the parent of its hooks
    began: float  # seconds since boot, CLOCK_MONOTONIC
    tty: str  # "" where sshd has made none yet


class Unreported(NamedTuple):
    """A session that nobody reported: as logind knows it, its name, and when it began."""

    session: LogindSession
    name: str
    began: float  # seconds since the epoch


class Clocks(NamedTuple):
    """What the clocks say at one moment, in seconds, and the boot id."""

    now: float  # since the epoch
    monotonic: float
    boottime: float  # as monotonic, and the time that the machine was suspended for
    boot: str


def logind_sessions() -> list[LogindSession] | None:
    """Return the sessions that logind knows; None if there is no logind, or no answer in time."""
    if not os.path.isdir(LOGIND):
        return None
    deadline = time.monotonic() + LOGINCTL_SECONDS
    listed = loginctl(["list-sessions"], deadline)
    if listed is None or listed.returncode:
        return None
    lines = listed.stdout.decode(errors="backslashreplace").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    properties = [f"--property={name}" for name in PROPERTIES]
    found: list[LogindSession] = []
    while ids:
        # It stops at the first session that has ended meanwhile: go on behind that one.
        shown = loginctl(["show-session", *properties, *ids], deadline)
        if shown is None:
            return found or None
        text = shown.stdout.decode(errors="backslashreplace")
        blocks = [block for block in text.split("\n\n") if block.strip()]
        found += [session for session in map(parse_session, blocks) if session]
        ids = ids[len(blocks) + 1 :]
    return found


def parse_session(block: str) -> LogindSession | None:
    """Return the session that show-session prints as NAME=value lines; None if a part lacks."""
    values = dict(line.partition("=")[::2] for line in reversed(block.strip().splitlines()))
    try:
        return LogindSession(
            values["Id"],
            values["Name"],
            values.get("RemoteHost", ""),
            values["Service"],
            int(values["Leader"]),
            int(values["TimestampMonotonic"]) / 1e6,
            values.get("TTY", ""),
        )
    except (KeyError, ValueError):
        return None


def unreported(
    sessions: Iterable[LogindSession],
    known: Container[str],
    start_of: Callable[[int], str | None],
    clocks: Clocks,
    reported_since: Callable[[str], float],
) -> Iterator[Unreported]:
    """Yield the sessions that a hook should have reported by now.

    known: the names of those that one has. start_of: ledger.StartOf. reported_since gives the
    seconds since the epoch from which on a service's stack has run tattle as it does now: math.inf
    if it does not.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    for session in sessions:
        age = clocks.monotonic - session.began
        start = start_of(session.leader)
        # Old versions kept sessions for ever, whose leader's id is another process's by now:
        # https://github.com/systemd/systemd/issues/8453
        if not start or int(start) / ticks > clocks.boottime - age + 1:
            continue
        began, name = clocks.now - age, f"{clocks.boot}.{session.leader}.{start}"
        if age > GRACE_SECONDS and name not in known and began > reported_since(session.service):
            yield Unreported(session, name, began)


def opened_record(found: Unreported, machine: list[bytes]) -> bytes:
    """Return the record of the `opened` that a hook would have accepted: the same session_id.

    machine: which one this is, as variables; process.machine().
    """
    session = found.session
    boot, pid, start = found.name.split(".")
    variables = {
        "PAM_SERVICE": session.service,
        "PAM_USER": session.user,
        **({"PAM_TTY": session.tty} if session.tty else {}),
        **({"PAM_RHOST": session.remote_host} if session.remote_host else {}),
        "PAM_TYPE": "open_session",
        "TATTLE_TIME": str(int(found.began * 1e9)),
        "TATTLE_PARENT": pid,
        "TATTLE_PARENT_START": start,
        "TATTLE_REPORTED_BY": "logind",
    }
    return new_record(variables, boot, *machine)


def log_line(found: Unreported) -> str:
    """Return the line for the log: somebody kept the hook from running, or wanted it so."""
    session = found.session
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.began))
    host = f" from {session.remote_host}" if session.remote_host else ""
    return (
        f"a session was not reported by PAM: {session.user}{host}, service {session.service},"
        f" process {session.leader}, since {began}; reported as logind knows it"
    )


def loginctl(arguments: list[str], deadline: float) -> subprocess.CompletedProcess[bytes] | None:
    """Run loginctl; None if it can't be run, or runs beyond a deadline of time.monotonic()."""
    try:
        return subprocess.run(
            [LOGINCTL, "--no-legend", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C"},
            timeout=max(0.0, deadline - time.monotonic()),
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
