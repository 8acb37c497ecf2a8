"""Whether SELinux keeps logins from being reported, and what fixes it. Looks only."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tattle.shell.finding import ERROR, OK, SKIPPED, Finding

SELINUX = Path("/sys/fs/selinux")  # the kernel's interface, selinux(8)
TYPES = {  # as recipes/tattle.cil has them
    "/var/spool/tattle": "tattle_spool_t",
    "/var/cache/tattle": "tattle_cache_t",
    "/run/tattle-spool": "tattle_spool_t",
    "/run/tattle": "tattle_cache_t",
}
UNCONFINED = ("unconfined_u", "system_u")  # SELinux users
RESTORE = (f"restorecon -Ri {' '.join(TYPES)}",)
INSTALL = ("tattle recipe tattle.cil > tattle.cil", "semodule -i tattle.cil", *RESTORE)


class Problem(NamedTuple):
    message: str
    commands: tuple[str, ...]


def probe() -> Iterator[Finding]:
    """Look whether SELinux lets login programs use tattle."""
    if os.geteuid() != 0:
        yield Finding("selinux", SKIPPED, "needs root")
        return
    found = problem()
    if found:
        root = ("semodule", "restorecon")
        commands = [f"sudo {one}" if one.startswith(root) else one for one in found.commands]
        yield Finding("selinux", ERROR, found.message, " && ".join(commands))
    else:
        yield Finding("selinux", OK, mode())


def problem(selinux: Path = SELINUX, types: dict[str, str] = TYPES) -> Problem | None:
    """Return what SELinux is in the way of, None if it is not. Needs root."""
    if mode(selinux) != "enforcing":
        return None
    if not module_loaded(selinux):
        return Problem("SELinux is enforcing and lets no login program use tattle", INSTALL)
    wrong = ", ".join(path for path in types if label(path) not in (None, types[path]))
    return Problem(f"SELinux is enforcing; wrong label: {wrong}", RESTORE) if wrong else None


def mode(selinux: Path = SELINUX) -> str:
    """Return "enforcing", "permissive" or "absent"."""
    try:
        return "enforcing" if (selinux / "enforce").read_text() == "1" else "permissive"
    except OSError:
        return "absent"


def confined_logins(etc: Path = Path("/etc/selinux")) -> list[str]:
    """Return the logins, `__default__` too, whose users the policy confines: seusers(5)."""
    try:
        kind = re.search(r"(?m)^SELINUXTYPE=(\w+)", (etc / "config").read_text())
        lines = (etc / kind[1] / "seusers").read_text().splitlines() if kind else []
    except OSError:
        return []
    users = [line.split(":") for line in lines if line.count(":") >= 1 and line[0] != "#"]
    return [words[0] for words in users if words[1] not in UNCONFINED]


def module_loaded(selinux: Path = SELINUX) -> bool:
    """Ask the kernel whether the policy that it enforces knows a type of the module's."""
    try:
        (selinux / "context").write_bytes(b"system_u:object_r:tattle_spool_t:s0\0")
    except OSError as error:
        return error.errno != errno.EINVAL  # anything else doesn't say that it is missing
    return True


def label(path: str) -> str | None:
    """Return the SELinux type of a file, "" if it has none, None if there is no such file."""
    try:
        return os.getxattr(path, "security.selinux").decode("ascii", "replace").split(":")[2]
    except FileNotFoundError:
        return None
    except (OSError, IndexError):
        return ""
