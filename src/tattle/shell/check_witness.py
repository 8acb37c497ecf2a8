"""The probe of the witnesses: who tells of a session where its hook could not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tattle.delivery import witness
from tattle.event.pamd import DIRECTORIES, Stack, services
from tattle.shell.finding import OK, WARNING, Finding
from tattle.shell.pam_lines import KEEPS_CALLERS_UID

ENDS = "a session that PAM does not close is closed when its process is gone"
SYSTEMD = "/run/systemd/system"  # is there where systemd is the first process: sd_booted(3)
REGISTERS = "pam_systemd.so"
# su, sudo, doas and polkit run inside a session that logind knows; cron's and at's are no logins.
UNREGISTERED = (*KEEPS_CALLERS_UID, "cron", "crond", "atd")


def probe() -> Iterator[Finding]:
    """Say which witness this host has beside PAM, and why not both."""
    sessions = witness.logind_sessions()
    if sessions is None and not os.path.isdir(SYSTEMD):
        message = f"{ENDS}; there is no systemd-logind to tell of one that PAM does not open"
        yield Finding("witness", OK, message)
        return
    if sessions is None:
        seconds = witness.LOGINCTL_SECONDS
        message = f"`loginctl list-sessions` fails, or takes longer than {seconds:.0f} s"
        advice = "sudo systemctl restart systemd-logind && loginctl list-sessions"
        yield Finding("witness", WARNING, message, advice)
        return
    unknown = [service for service in services() if not is_registered(service)]
    for service in unknown:
        message = f"no line runs {REGISTERS}, so that logind does not know of its sessions"
        line = f"session    optional     {REGISTERS}"
        advice = f"with it installed: echo '{line}' | sudo tee -a {DIRECTORIES[0]}/{service}"
        yield Finding("witness", WARNING, message, advice, service)
    if not unknown:
        yield Finding("witness", OK, f"logind tells of a session that PAM does not open; {ENDS}")


def is_registered(service: str) -> bool:
    """Tell whether logind knows of a service's sessions, or need not."""
    lines = [line for line in Stack(service).lines if line.kind == "session"]
    return service in UNREGISTERED or any(line.module == REGISTERS for line in lines)
