"""sudo, su and login beside sshd: the distribution's PAM stacks with our line, real sessions, and
one configuration file for all of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from standins.eventbridge import Entry
from standins.instance import ON_A_TERMINAL, SPOOL, TATTLE, Instance
from support import eventually, need_root

pytestmark = pytest.mark.root

CONF = """\
[service sudo]
detail-type = sudo session
source = org.example.privileges

[tattle]
source = org.example
fields = service username remote_user tty remote_host session session_id duration

[service su]
detail-type = su session

[service login]
detail-type = Console login
event-bus = consoles
fields = username tty session
"""
PASSWORD = "pw"
HASH = (  # of PASSWORD, as crypt(5) writes it
    "$6$abc$MtSdWSZbhct2oe.SOqOUM2M/GA/uj5.vyVtJgRHgKi9uqXuWuJqOYE7H/YlsYGVg/YYzDV0xt3fEIwYt580.5."
)


@pytest.fixture
def box(instance: Instance) -> Instance:
    """The instance with tattle in every service's stack, as its README says."""
    for service in ("sudo", "su", "su-l", "login"):
        if instance.path(f"/etc/pam.d/{service}").exists():
            stock = instance.read(f"/etc/pam.d/{service}")
            if re.search(r"include\s+su$", stock, re.MULTILINE):
                continue
            line = f"session    optional     pam_exec.so {TATTLE}\n"
            if service != "login":
                line = f"session    [success=ok default=die] pam_exec.so seteuid {TATTLE}\n"
            instance.write(f"/etc/pam.d/{service}", stock + line)
    instance.write("/etc/sudoers.d/ubuntu", "ubuntu ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    shadow = instance.read("/etc/shadow").replace("alice:*:", f"alice:{HASH}:")
    instance.write("/etc/shadow", shadow, 0o640)
    instance.write("/etc/tattle.conf", CONF)
    return instance


def session(box: Instance, *command: str, **options: Any) -> tuple[Entry, Entry]:
    """The two entries that a session with one of the services leads to."""
    done = box.run(command, **options)
    assert done.returncode == 0, done
    opened, closed = box.eventbridge.wait_for(2)
    assert box.log() == []
    return opened, closed


def pairs(opened: Entry, closed: Entry) -> None:
    """What holds of the two events of any session: they agree in all but what tells them apart."""
    first, last = dict(opened.detail), dict(closed.detail)
    assert (first.pop("session"), last.pop("session")) == ("opened", "closed")
    assert "duration" not in first
    assert last.pop("duration") in range(30)
    assert first == last


DEFAULT = ("SSH connection event detected", "org.example")
SU = ("su session", "org.example")
SUDO = ("sudo session", "org.example.privileges")


@pytest.mark.parametrize(
    ("by", "command", "kind", "service", "target", "tty"),
    [
        ("ubuntu", ["su", "alice", "-c", "true"], SU, "su", "alice", False),
        ("root", [*ON_A_TERMINAL, "su", "alice", "-c", "true"], SU, "su", "alice", True),
        # It includes su's stack, and there is no [service su-l].
        ("root", ["su", "-", "alice", "-c", "true"], DEFAULT, "su-l", "alice", False),
        ("ubuntu", ["sudo", "-u", "alice", "true"], SUDO, "sudo", "alice", False),
        ("root", ["sudo", "-u", "alice", "true"], SUDO, "sudo", "alice", False),
        ("ubuntu", [*ON_A_TERMINAL, "sudo", "true"], SUDO, "sudo", "root", True),
    ],
)
def test_su_and_sudo(
    by: str,
    command: Sequence[str],
    kind: tuple[str, str],
    service: str,
    target: str,
    tty: bool,
    box: Instance,
) -> None:
    need_root("sudo")
    opened, closed = session(box, *command, user=by, input=f"{PASSWORD}\n")
    pairs(opened, closed)
    for entry in (opened, closed):
        assert (entry.raw["DetailType"], entry.raw["Source"]) == kind
        found = [entry.detail[name] for name in ("service", "username", "remote_user")]
        assert found == [service, target, by]
        assert entry.detail["session_id"]
        terminal = entry.detail["tty"]
        assert terminal.startswith(("pts/", "/dev/pts/")) if tty else terminal is None


def test_a_failed_command_of_sudos_closes_its_session_too(box: Instance) -> None:
    need_root("sudo")
    assert box.run(["sudo", "false"], user="ubuntu").returncode == 1
    pairs(*box.eventbridge.wait_for(2))


def test_login(box: Instance) -> None:
    command = [*ON_A_TERMINAL, "login", "-f", "alice"]
    with box.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as login:
        assert login.stdout
        shown = ""
        while not shown.endswith("$ "):  # what is typed earlier may be discarded
            shown += login.stdout.read(1)
        login.communicate("exit\n", timeout=20)
    opened, closed = box.eventbridge.wait_for(2)
    assert box.log() == []
    for entry, state in ((opened, "opened"), (closed, "closed")):
        assert entry.raw["DetailType"] == "Console login"
        assert entry.raw["Source"] == "org.example"
        assert entry.raw["EventBusName"] == "consoles"
        assert list(entry.detail) == ["username", "tty", "session"]  # its own fields
        assert (entry.detail["username"], entry.detail["session"]) == ("alice", state)
        assert entry.detail["tty"].startswith(("pts/", "/dev/pts/", "tty"))


def test_one_file_and_one_hook_serve_a_login_and_what_is_done_in_it(box: Instance) -> None:
    need_root("sudo")
    assert box.ssh("ubuntu", "sudo su alice -c true").returncode == 0
    entries = box.eventbridge.wait_for(6)
    found = [(entry.raw["DetailType"], entry.detail["session"]) for entry in entries]
    assert found == [
        ("SSH connection event detected", "opened"),
        ("sudo session", "opened"),
        ("su session", "opened"),
        ("su session", "closed"),
        ("sudo session", "closed"),
        ("SSH connection event detected", "closed"),
    ]
    assert len({entry.detail["session_id"] for entry in entries}) == 3
    people = [(entry.detail["remote_user"], entry.detail["username"]) for entry in entries[:3]]
    assert people == [(None, "ubuntu"), ("ubuntu", "root"), ("root", "alice")]


def test_the_closed_of_a_su_that_is_killed_is_found_out(box: Instance) -> None:
    box.write("/etc/tattle.conf", "[tattle]\nfields = username session session_id\n")
    with box.popen(["su", "alice", "-c", "sleep 60"]):
        box.eventbridge.wait_for(1)
        box.kill(*(one for one in box.processes("su alice") if one.command[0] == "su"))
        box.kill(*box.processes("sleep 60"))
    looked = box.path(f"{SPOOL}/open/.looked")
    eventually(looked.exists)
    os.utime(looked, (0, 0))  # a minute ago, else nobody looks again
    box.run([TATTLE, "flush"], check=True)
    opened, closed = (entry.detail for entry in box.eventbridge.wait_for(2))
    assert opened["session"] == "opened"
    assert closed == {**opened, "session": "closed"}


def test_what_su_spools_is_roots_alone(box: Instance) -> None:
    """su keeps its caller's real ids, and the hook must not."""
    box.eventbridge.set(fault="refuse")
    su = box.run(["su", "alice", "-c", "true"], user="ubuntu", input=f"{PASSWORD}\n")
    assert su.returncode == 0
    names = box.spool()
    assert len(names) == 2
    for name in names:
        status = (box.path("/var/spool/tattle") / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 0, 0o600)
    eventually(box.deliverers)
    deliverers = box.deliverers()  # the one at work, and the next one
    assert deliverers
    for deliverer in deliverers:
        status_lines = box.read(f"/proc/{deliverer.pid}/status").splitlines()
        ids = [line.split()[1:] for line in status_lines if line.startswith(("Uid:", "Gid:"))]
        assert ids == [["0"] * 4] * 2
