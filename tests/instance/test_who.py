"""Who really logged in, and where: the method and the key as sshd saw them, the connection, what
makes two events one session, and the machine. Nothing of it can be put there by the user whom it is
about."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from standins.instance import (
    BOOT_ID,
    HOSTNAME,
    INSTANCE_ID,
    INSTANCE_ID_FILE,
    REMOTE_HOST,
    SPOOL,
    SYSTEM_PYTHON,
    TATTLE,
    Instance,
)
from support import eventually

pytestmark = pytest.mark.root

FIELDS = "session auth_method key_fingerprint certificate connection session_id duration event_id"
NULL = dict.fromkeys(("auth_method", "key_fingerprint", "certificate", "connection"))
PASSWORD = "pw"
HASH = (  # of PASSWORD, as crypt(5) writes it
    "$6$abc$MtSdWSZbhct2oe.SOqOUM2M/GA/uj5.vyVtJgRHgKi9uqXuWuJqOYE7H/YlsYGVg/YYzDV0xt3fEIwYt580.5."
)
KEY = "/root/.ssh/key"
AUTHORIZED_KEYS = "/home/ubuntu/.ssh/authorized_keys"
FORGED_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
FORGED = (
    f'SSH_AUTH_INFO_0 DEFAULT="publickey {FORGED_KEY}"\n'
    'SSH_CONNECTION DEFAULT="9.9.9.9 9 9.9.9.9 9"\n'
    "IN_FORCE DEFAULT=yes\n"
)


@pytest.fixture
def box(instance: Instance) -> Instance:
    """The instance without Debian's user_readenv, and with every field that is about who."""
    instance.configure_pam(user_readenv=False)
    instance.write("/etc/tattle.conf", f"[tattle]\nfields = {FIELDS}\n")
    instance.write(
        "/etc/shadow", instance.read("/etc/shadow").replace("ubuntu:*", f"ubuntu:{HASH}")
    )
    settle()
    return instance


def settle() -> None:
    """Let a clock tick pass, so that what starts now is younger than what was written just now."""
    time.sleep(0.03)


def make_key(box: Instance, kind: str, *options: str, authorized: bool = True) -> None:
    """Make a key pair at KEY, the only one that lets ubuntu in, or not even that."""
    command = ["ssh-keygen", "-q", "-t", kind, *options, "-N", "", "-C", "a comment", "-f", KEY]
    box.run(["rm", "-f", KEY, f"{KEY}.pub", f"{KEY}-cert.pub"], check=True)
    box.run(command, check=True)
    box.write(AUTHORIZED_KEYS, box.read(f"{KEY}.pub") if authorized else "", 0o600, "ubuntu")


def fingerprint(box: Instance, file: str) -> str:
    """What ssh-keygen calls the key, or the certificate, in a file."""
    return box.run(["ssh-keygen", "-lf", file], check=True).stdout.split()[1]


def log_in(box: Instance, *options: str, command: str = "true") -> subprocess.CompletedProcess[str]:
    """Log in as ubuntu with KEY, and with the password where it is asked for."""
    settings = [
        f"BindAddress={REMOTE_HOST}",
        f"IdentityFile={KEY}",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ]
    flags = [flag for setting in settings for flag in ("-o", setting)]
    box.write("/root/askpass", f"#!/bin/sh\necho {PASSWORD}\n", 0o755)
    done = box.run(
        ["ssh", "-F", "none", *flags, *options, "ubuntu@127.0.0.1", command],
        env={"SSH_ASKPASS": "/root/askpass", "SSH_ASKPASS_REQUIRE": "force"},
    )
    assert done.returncode == 0, done
    return done


def both(box: Instance) -> list[dict[str, Any]]:
    """The details of a session's two events."""
    opened, closed = (entry.detail for entry in box.eventbridge.wait_for(2))
    assert (opened["session"], closed["session"]) == ("opened", "closed")
    return [opened, closed]


def sign(box: Instance, public: str, key_id: str) -> None:
    """Make a certificate of a public key for ubuntu, beside it, that sshd accepts."""
    box.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/user_ca"], check=True)
    options = ["-I", key_id, "-z", "7", "-n", "ubuntu"]
    box.run(["ssh-keygen", "-q", "-s", "/etc/ssh/user_ca", *options, public], check=True)


METHODS = {  # how sshd is to authenticate: what is reported, and whether there is a key
    "publickey": ("publickey", True),
    "publickey,password": ("publickey,password", True),
    "password,publickey": ("password,publickey", True),
    "password": ("password", False),
    "keyboard-interactive": ("keyboard-interactive/pam", False),
}


def assert_nothing_reported(detail: dict[str, Any]) -> None:
    """Nothing that sshd says of them, or that they could say in its name."""
    assert {name: detail[name] for name in NULL} == NULL


class TestHowTheyAuthenticated:
    """(What ssh-keygen says of all sorts of keys, unit/test_fingerprint.py shows.)"""

    @pytest.mark.parametrize("methods", METHODS)
    def test_methods_and_key(self, methods: str, box: Instance) -> None:
        method, by_key = METHODS[methods]
        make_key(box, "ecdsa", "-b", "384")
        passwords = ("PasswordAuthentication yes", "KbdInteractiveAuthentication yes")
        box.start_sshd(f"AuthenticationMethods {methods}", *passwords)
        log_in(box)
        for detail in both(box):
            assert detail["auth_method"] == method
            assert detail["key_fingerprint"] == (fingerprint(box, KEY) if by_key else None)
            assert detail["certificate"] is None

    @pytest.mark.parametrize("size", [1, 90_000])
    def test_of_a_certificate_the_key_in_it_and_what_it_says(
        self, size: int, box: Instance
    ) -> None:
        """However much that is: a user's own authority may certify anything."""
        make_key(box, "rsa", "-b", "2048", authorized=False)
        sign(box, f"{KEY}.pub", "x" * size)
        box.start_sshd("TrustedUserCAKeys /etc/ssh/user_ca.pub")
        log_in(box)
        for detail in both(box):
            assert detail["auth_method"] == "publickey"
            assert detail["key_fingerprint"] == fingerprint(box, f"{KEY}-cert.pub")
            assert detail["certificate"] == {
                "key_id": "x" if size == 1 else "x" * 1000 + "…",
                "serial": "7",
                "ca": fingerprint(box, "/etc/ssh/user_ca.pub"),
            }

    def test_of_two_keys_the_first(self, box: Instance) -> None:
        other = FORGED_KEY[:-4] + "AAAA"
        info = f"password\npublickey {FORGED_KEY}\npublickey {other}\n"
        box.hook(before=[("SSH_AUTH_INFO_0", info)])
        (entry,) = box.eventbridge.wait_for(1)
        box.write("/root/.ssh/first.pub", FORGED_KEY)
        assert entry.detail["auth_method"] == "password,publickey,publickey"
        assert entry.detail["key_fingerprint"] == fingerprint(box, "/root/.ssh/first.pub")

    def test_the_connection(self, box: Instance) -> None:
        make_key(box, "ed25519")
        host, port, *here = log_in(box, command="echo $SSH_CONNECTION").stdout.split()
        assert here == ["127.0.0.1", "22"]
        for detail in both(box):
            assert detail["connection"] == {
                "remote_host": host,
                "remote_port": int(port),
                "local_host": "127.0.0.1",
                "local_port": 22,
            }

    def test_other_services_have_none_of_it(self, box: Instance) -> None:
        box.write("/etc/pam.d/cron", "session optional pam_exec.so /usr/local/bin/tattle\n")
        settle()
        box.hook(service="cron", rhost=None)
        (entry,) = box.eventbridge.wait_for(1)
        assert_nothing_reported(entry.detail)


HOLES = {  # lines that have pam_env read the user's file; see pam.d(5) and pam_env(8)
    "as Debian has it": "session    required     pam_env.so user_readenv=1\n",
    "for auth": "auth optional pam_env.so user_readenv=1\n",
    "in capitals, with a dash": "-SESSION Required\tpam_env.so\tdebug user_readenv=1\n",
    "in three lines": "session \\\nrequired \\\npam_env.so user_readenv=2\n",
    "in brackets": "session [success=ok default=bad] pam_env.so [user_readenv=1]\n",
    "as a substack": "session substack hole\n",
    "included in Debian's way, behind a tab": "@include\thole\n",
}
HOLE = "/etc/pam.d/hole"


def dig_hole(box: Instance, line: str) -> None:
    """Have ubuntu say something of themselves, and PAM listen."""
    box.write(HOLE, "session required pam_env.so user_readenv=1\n")
    box.write("/etc/pam.d/sshd", line + box.read("/etc/pam.d/sshd"))
    box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
    settle()


FIXES = {  # of a hole that /etc/pam.d/sshd includes
    "its line taken out": lambda box: box.configure_pam(user_readenv=False),
    "emptied": lambda box: box.path(HOLE).write_text(""),
    "removed": lambda box: box.path(HOLE).unlink(),
    "replaced": lambda box: box.path("/etc/pam.d/harmless").rename(box.path(HOLE)),
}


class TestUsersWhoWouldLie:
    """Who may write ~/.pam_environment could make sshd's word anything: so it isn't passed on."""

    @pytest.mark.parametrize("hole", HOLES)
    def test_however_the_hole_is_written_nothing_they_say_is_reported(
        self, hole: str, box: Instance
    ) -> None:
        dig_hole(box, HOLES[hole])
        assert box.ssh("ubuntu", "echo $IN_FORCE").stdout == "yes\n"  # it is a hole
        for detail in both(box):
            assert_nothing_reported(detail)
            assert detail["session_id"]  # which no user can touch

    def test_where_there_is_no_hole_their_file_changes_nothing(self, box: Instance) -> None:
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        assert box.ssh("ubuntu", "echo $IN_FORCE").stdout == "\n"
        for detail in both(box):
            assert detail["key_fingerprint"] == fingerprint(box, AUTHORIZED_KEYS)
            assert detail["connection"]["remote_host"] == REMOTE_HOST

    def test_a_hole_that_is_fixed_during_the_session(self, box: Instance) -> None:
        """The environment of the logout is that of the login: fixing the file doesn't clean it."""
        dig_hole(box, HOLES["as Debian has it"])
        with box.logged_in("ubuntu"):
            box.eventbridge.wait_for(1)
            box.configure_pam(user_readenv=False)
        for detail in both(box):
            assert_nothing_reported(detail)

    @pytest.mark.parametrize("fix", FIXES)
    def test_a_hole_that_is_fixed_before_the_event_is_delivered(
        self, fix: str, box: Instance
    ) -> None:
        box.write("/etc/pam.d/harmless", "session optional pam_permit.so\n")
        dig_hole(box, "@include hole\n")
        box.eventbridge.set(fault="refuse")
        box.ssh("ubuntu", "true")
        box.syslog.wait_for("events wait in the spool")
        box.kill_deliverers()
        FIXES[fix](box)
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        for detail in both(box):
            assert_nothing_reported(detail)

    def test_a_session_whose_beginning_is_not_known(self, box: Instance) -> None:
        """Nobody can tell then whether a hole was fixed since."""
        box.eventbridge.set(fault="refuse")
        box.hook(before=[("SSH_CONNECTION", "9.9.9.9 9 9.9.9.9 9")])
        box.kill_deliverers()
        (name,) = box.spool()
        record = box.path(SPOOL) / name
        record.write_bytes(re.sub(rb"(PARENT_START=)\d*", rb"\1", record.read_bytes()))
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        (detail,) = box.eventbridge.details()
        assert_nothing_reported(detail)

    def test_from_a_shell_nothing_of_it_is_reported(self, box: Instance) -> None:
        """The environment of the smoke test is its caller's own."""
        variables = {
            "SSH_AUTH_INFO_0": f"publickey {FORGED_KEY}\n",
            "SSH_CONNECTION": "9.9.9.9 9 9.9.9.9 9",
            "TATTLE_UNVERIFIED_SSH_CONNECTION": "9.9.9.9 9 9.9.9.9 9",
        }
        login = {"PAM_TYPE": "open_session", "PAM_USER": "test"}
        assert box.run([TATTLE], env={**variables, **login}).returncode == 0
        (detail,) = box.eventbridge.details()
        assert_nothing_reported(detail)


class TestSessions:
    def test_the_two_events_of_a_session_share_an_id_and_two_sessions_do_not(
        self, box: Instance
    ) -> None:
        for _ in range(2):
            box.ssh("ubuntu", "true")
        details = [entry.detail for entry in box.eventbridge.wait_for(4)]
        first, second = (detail["session_id"] for detail in details[::2])
        assert [detail["session_id"] for detail in details[1::2]] == [first, second]
        assert first != second
        assert re.fullmatch("[0-9a-f]{32}", first)

    def test_so_do_sessions_at_the_same_time(self, box: Instance) -> None:
        box.write("/etc/tattle.conf", f"[tattle]\nfields = {FIELDS} username remote_host\n")
        ends = [("ubuntu", REMOTE_HOST), ("alice", "127.0.0.1")] * 2
        commands = [
            box.ssh_command("ssh", f"{user}@127.0.0.1", "sleep 0.5", user=user, source=source)
            for user, source in ends
        ]
        clients = [box.popen(command) for command in commands]
        details = [entry.detail for entry in box.eventbridge.wait_for(8, timeout=30)]
        assert [client.wait() for client in clients] == [0] * 4
        opened, closed = (
            sorted(
                (one["session_id"], one["username"], one["remote_host"])
                for one in details
                if one["session"] == state
            )
            for state in ("opened", "closed")
        )
        assert opened == closed
        assert sorted(end for _, *end in opened) == sorted(map(list, ends))
        assert len({session for session, *_ in opened}) == 4
        assert len({detail["event_id"] for detail in details}) == 8

    def test_after_a_reboot_the_same_process_is_another_session(self, box: Instance) -> None:
        with box.session() as session:
            session.hook()
            box.write(BOOT_ID, "11111111-2222-3333-4444-555555555555\n")
            session.hook("close_session")
        opened, closed = both(box)
        assert opened["session_id"] != closed["session_id"]

    def test_a_later_process_with_the_same_number_is_another_session(self, box: Instance) -> None:
        numbers: list[int] = []
        for _ in range(2):
            if numbers:
                before = f"echo {numbers[0] - 1} >/proc/sys/kernel/ns_last_pid"
                box.run(["/bin/sh", "-c", before], check=True)
            with box.session() as session:
                session.hook()
            (process,) = box.processes("-IS -c", sessions=True)
            numbers.append(process.pid)
            box.eventbridge.wait_for(len(numbers))
            eventually(lambda: not box.spool())
            box.kill_deliverers()
            box.kill(process)
            eventually(lambda: not box.processes(sessions=True))
        assert numbers[0] == numbers[1]
        first, second = box.eventbridge.details()
        assert first["session_id"] != second["session_id"]

    def test_one_connection_is_one_session_however_many_shells_it_carries(
        self, box: Instance
    ) -> None:
        """sshd opens a PAM session for a connection, not for each of its channels."""
        arguments = ["-M", "-N", "-S", "/tmp/control", "ubuntu@127.0.0.1"]
        master = box.popen(box.ssh_command("ssh", *arguments, user="ubuntu", source=REMOTE_HOST))
        (entry,) = box.eventbridge.wait_for(1)  # with no shell yet
        assert entry.detail["session"] == "opened"
        for _ in range(2):
            command = ["ssh", "-F", "none", "-S", "/tmp/control", "ubuntu@127.0.0.1", "echo here"]
            assert box.run(command).stdout == "here\n"
        assert box.run(["ssh", "-S", "/tmp/control", "-O", "exit", "host"]).returncode == 0
        opened, closed = both(box)
        assert opened["session_id"] == closed["session_id"]
        master.wait()
        assert len(box.eventbridge.entries()) == 2

    def test_the_duration_is_in_whole_seconds_and_of_the_closed_event_only(
        self, box: Instance
    ) -> None:
        """And does not depend on when the event is delivered."""
        box.eventbridge.set(fault="refuse")
        before = time.monotonic()
        box.ssh("ubuntu", "sleep 1.2")
        longest = time.monotonic() - before
        box.kill_deliverers()
        time.sleep(longest)
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        opened, closed = both(box)
        assert "duration" not in opened
        assert isinstance(closed["duration"], int)
        assert 1 <= closed["duration"] <= longest


@contextmanager
def host_name(box: Instance, name: bytes) -> Iterator[None]:
    """What the kernel has as the host's name while entered: any bytes."""
    rename = [SYSTEM_PYTHON, "-ISc", f"import socket; socket.sethostname({name!r})"]
    box.run(rename, check=True)
    try:
        yield
    finally:
        box.run(["hostname", HOSTNAME], check=True)


class TestOnWhichMachine:
    """A record says so itself: a golden image may carry it to another machine."""

    @pytest.mark.parametrize(
        ("known", "reported"),
        [
            (f"{INSTANCE_ID}\n", INSTANCE_ID),
            ("i-0123456789abcdef0\n", "i-0123456789abcdef0"),
            ("", ""),
            ("i-\n", ""),
            ("i-0g\n", ""),
            ("iid-datasource-none\n", ""),
        ],
    )
    def test_it_has_the_instance_id_if_the_machine_knows_one(
        self, known: str, reported: str, box: Instance
    ) -> None:
        box.write(INSTANCE_ID_FILE, known)
        (name,) = box.accept("ubuntu")
        variables = box.read(f"{SPOOL}/{name}").split("\0")
        found = [one.partition("=")[2] for one in variables if one.startswith("TATTLE_INSTANCE")]
        assert found == ([reported] if reported else [])

    @pytest.mark.parametrize("name", [b"the-builder", b"b\xf4b"])
    def test_the_host_name_is_that_of_the_moment(self, name: bytes, box: Instance) -> None:
        box.write("/etc/tattle.conf", "[tattle]\nfields = hostname\n")
        with host_name(box, name):
            box.accept("ubuntu")
            box.run([TATTLE, "check", "--send"])
        assert box.run([TATTLE, "flush"]).returncode == 0
        told = {"hostname": name.decode(errors="backslashreplace")}
        assert box.eventbridge.details() == [told, told]


class TestRedelivery:
    def test_an_event_that_comes_twice_has_the_same_event_id(self, box: Instance) -> None:
        box.eventbridge.set(fault="reset-after", fault_times=1)
        box.hook()
        eventually((box.path(SPOOL) / ".fault").exists)
        assert box.run([TATTLE, "flush"]).returncode == 0
        first, again = box.eventbridge.wait_for(2)
        assert first.event_id != again.event_id  # EventBridge's own can't tell
        assert first.raw == again.raw
        assert re.fullmatch("[0-9a-f]{32}", first.detail["event_id"])

    def test_by_another_deliverer_and_as_another_entry_of_a_batch_too(self, box: Instance) -> None:
        box.eventbridge.set(fault="hang-after")
        box.hook()
        (first,) = box.eventbridge.wait_for(1)
        box.kill_deliverers()
        with box.session() as session:
            for _ in range(2):  # which look the same, and have ids of their own
                session.hook(user="alice")
                box.kill_deliverers()
        box.eventbridge.set(fault=None)
        box.eventbridge.clear()
        assert box.run([TATTLE, "flush"]).returncode == 0
        again, *others = box.eventbridge.entries()
        assert again.raw == first.raw
        assert len({entry.detail["event_id"] for entry in (first, *others)}) == 3
