"""Whether SELinux keeps logins from being reported, and what fixes it. Looks only."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tattle.shell.finding import ERROR, OK, SKIPPED, Finding

SELINUX = Path("/sys/fs/selinux")  # the kernel's interface, selinux(8)
TYPES = {  # as recipes/tattle.cil has them
    "/var/spool/tattle": "tattle_spool_t",
    "/var/cache/tattle": "tattle_cache_t",
    "/run/tattle-spool": "tattle_spool_t",
    "/run/tattle": "tattle_cache_t",
}
UNCONFINED = ("unconfined_u", "system_u")  # SELinux users
RESTORE = f"sudo restorecon -Ri {' '.join(TYPES)}"
INSTALL = f"tattle recipe tattle.cil > tattle.cil && sudo semodule -i tattle.cil && {RESTORE}"


def probe(selinux: Path = SELINUX, types: dict[str, str] = TYPES) -> Iterator[Finding]:
    """Look whether SELinux lets login programs use tattle."""
    wrong = ", ".join(path for path in types if label(path) not in (None, types[path]))
    if os.geteuid() != 0:
        yield Finding("selinux", SKIPPED, "needs root")
    elif mode(selinux) != "enforcing":
        yield Finding("selinux", OK, mode(selinux))
    elif not module_loaded(selinux):
        message = "SELinux is enforcing and lets no login program use tattle"
        yield Finding("selinux", ERROR, message, INSTALL)
    elif wrong:
        message = f"SELinux is enforcing; wrong label: {wrong}"
        yield Finding("selinux", ERROR, message, RESTORE)
    else:
        yield Finding("selinux", OK, "enforcing")


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
