"""Who really logged in: the method and the key as sshd saw them, the connection, and what makes two
events one session. Nothing of it can be put there by the user whom it is about."""

from __future__ import annotations

import base64
import re
import subprocess
import time
from typing import Any, ClassVar

import pytest

from standins.instance import BOOT_ID, REMOTE_HOST, SPOOL, TATTLE, Instance
from support import eventually

pytestmark = pytest.mark.root

FIELDS = "session auth_method key_fingerprint connection session_id duration event_id"
NULL = {"auth_method": None, "key_fingerprint": None, "connection": None}
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


class TestHowTheyAuthenticated:
    @pytest.mark.parametrize(
        ("kind", "options"), [("ed25519", []), ("rsa", ["-b", "2048"]), ("ecdsa", ["-b", "384"])]
    )
    def test_a_key(self, kind: str, options: list[str], box: Instance) -> None:
        make_key(box, kind, *options)
        log_in(box)
        for detail in both(box):
            assert detail["auth_method"] == "publickey"
            assert detail["key_fingerprint"] == fingerprint(box, KEY)

    @pytest.mark.parametrize(
        ("kind", "options"), [("ed25519", []), ("rsa", ["-b", "2048"]), ("ecdsa", ["-b", "521"])]
    )
    def test_a_certificate(self, kind: str, options: list[str], box: Instance) -> None:
        make_key(box, kind, *options, authorized=False)
        sign(box, f"{KEY}.pub")
        box.write("/etc/ssh/user_ca.pub", box.read("/root/.ssh/ca.pub"))
        box.start_sshd("TrustedUserCAKeys /etc/ssh/user_ca.pub")
        log_in(box)
        assert fingerprint(box, f"{KEY}-cert.pub") == fingerprint(box, KEY)
        for detail in both(box):
            assert detail["auth_method"] == "publickey"
            assert detail["key_fingerprint"] == fingerprint(box, f"{KEY}-cert.pub")

    def test_a_key_and_a_password(self, box: Instance) -> None:
        make_key(box, "ed25519")
        box.start_sshd("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
        log_in(box)
        for detail in both(box):
            assert detail["auth_method"] == "publickey,password"
            assert detail["key_fingerprint"] == fingerprint(box, KEY)

    def test_a_password_and_a_key(self, box: Instance) -> None:
        make_key(box, "ed25519")
        box.start_sshd("AuthenticationMethods password,publickey", "PasswordAuthentication yes")
        log_in(box)
        for detail in both(box):
            assert detail["auth_method"] == "password,publickey"
            assert detail["key_fingerprint"] == fingerprint(box, KEY)

    @pytest.mark.parametrize(
        ("method", "told"),
        [("password", "password"), ("keyboard-interactive", "keyboard-interactive/pam")],
    )
    def test_no_key(self, method: str, told: str, box: Instance) -> None:
        make_key(box, "ed25519")
        box.start_sshd(
            f"AuthenticationMethods {method}",
            "PasswordAuthentication yes",
            "KbdInteractiveAuthentication yes",
        )
        log_in(box)
        for detail in both(box):
            assert (detail["auth_method"], detail["key_fingerprint"]) == (told, None)

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
        assert {name: entry.detail[name] for name in NULL} == NULL


def sign(box: Instance, public: str) -> None:
    """Make a certificate of a public key for ubuntu, beside it, by an authority in root's .ssh."""
    if not box.path("/root/.ssh/ca").exists():
        box.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/ca"], check=True)
    box.run(
        ["ssh-keygen", "-q", "-s", "/root/.ssh/ca", "-I", "x", "-n", "ubuntu", public], check=True
    )


def text(*fields: bytes) -> str:
    """Base64 of SSH strings (RFC 4251, section 5)."""
    return base64.b64encode(b"".join(len(f).to_bytes(4, "big") + f for f in fields)).decode()


class TestFingerprints:
    """Keys that no login here can use, as sshd would tell of them."""

    P256 = b"\x04" + bytes.fromhex(  # the curve's generator, SEC 2
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    HARDWARE: ClassVar = {
        "sk-ssh-ed25519@openssh.com": (b"\x58" + b"\x66" * 31, b"ssh:"),
        "sk-ecdsa-sha2-nistp256@openssh.com": (b"nistp256", P256, b"ssh:"),
    }

    def told(self, box: Instance, *lines: str) -> dict[str, Any]:
        """What is told of a session of which sshd says that."""
        info = "".join(f"{line}\n" for line in lines)
        box.hook(before=[("SSH_AUTH_INFO_0", info)])
        return box.eventbridge.wait_for(1)[-1].detail

    @pytest.mark.parametrize("kind", HARDWARE)
    def test_a_hardware_key_and_its_certificate(self, kind: str, box: Instance) -> None:
        public = f"{kind} {text(kind.encode(), *self.HARDWARE[kind])}"
        box.write("/root/.ssh/hardware.pub", f"{public} a comment\n")
        expected = fingerprint(box, "/root/.ssh/hardware.pub")
        assert self.told(box, f"publickey {public}")["key_fingerprint"] == expected
        sign(box, "/root/.ssh/hardware.pub")
        certificate = "/root/.ssh/hardware-cert.pub"
        assert fingerprint(box, certificate) == expected
        kind, blob, *_ = box.read(certificate).split()
        box.eventbridge.clear()
        assert self.told(box, f"publickey {kind} {blob}")["key_fingerprint"] == expected

    def test_dsa(self, box: Instance) -> None:
        make_key(box, "dsa")
        kind, blob, *_ = box.read(f"{KEY}.pub").split()
        detail = self.told(box, f"publickey {kind} {blob}")
        assert detail["key_fingerprint"] == fingerprint(box, KEY)

    @pytest.mark.parametrize(
        "rubbish",
        [
            "publickey",
            "publickey ssh-ed25519",
            "publickey ssh-ed25519 %%%",
            "publickey ssh-ed25519-cert-v01@openssh.com AAAA",
            "publickey new-cert-v01@openssh.com AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYH",
        ],
    )
    def test_a_key_that_is_not_understood_has_none_and_the_event_goes_out(
        self, rubbish: str, box: Instance
    ) -> None:
        detail = self.told(box, rubbish)
        assert (detail["auth_method"], detail["key_fingerprint"]) == ("publickey", None)

    def test_of_two_keys_the_first_is_told(self, box: Instance) -> None:
        other = FORGED_KEY[:-4] + "AAAA"
        detail = self.told(box, "password", f"publickey {FORGED_KEY}", f"publickey {other}")
        box.write("/root/.ssh/first.pub", FORGED_KEY)
        assert detail["auth_method"] == "password,publickey,publickey"
        assert detail["key_fingerprint"] == fingerprint(box, "/root/.ssh/first.pub")


HOLES = {  # lines that have pam_env read the user's file; see pam.d(5) and pam_env(8)
    "as Debian has it": "session    required     pam_env.so user_readenv=1\n",
    "for auth": "auth optional pam_env.so user_readenv=1\n",
    "behind tabs and blanks": " \tsession\trequired\tpam_env.so\tdebug\tuser_readenv=1\n",
    "in capitals": "SESSION Required pam_env.so user_readenv=1\n",
    "with a dash": "-session required pam_env.so user_readenv=1\n",
    "in two lines": "session required pam_env.so \\\n    user_readenv=1\n",
    "in three lines": "session \\\nrequired \\\npam_env.so user_readenv=1\n",
    "in brackets": "session [success=ok default=bad] pam_env.so [user_readenv=1]\n",
    "with another number": "session required pam_env.so user_readenv=2\n",
    "included": "session include hole\n",
    "included in capitals": "session INCLUDE hole\n",
    "included by its path": "session include /etc/pam.d/hole\n",
    "as a substack": "session substack hole\n",
    "included in Debian's way": "@include hole\n",
    "included in Debian's way, behind a tab": "@include\thole\n",
}


class TestUsersWhoWouldLie:
    """Who may write ~/.pam_environment could make sshd's word anything: so it isn't passed on."""

    def test_stock_debian_lets_them_so_nothing_is_told(self, box: Instance) -> None:
        box.configure_pam(user_readenv=True)
        settle()
        box.ssh("ubuntu", "true")
        for detail in both(box):
            assert {name: detail[name] for name in NULL} == NULL
            assert detail["session_id"]  # which no user can touch

    @pytest.mark.parametrize("hole", HOLES)
    def test_however_the_hole_is_written_nothing_they_say_is_told(
        self, hole: str, box: Instance
    ) -> None:
        box.write("/etc/pam.d/hole", "session required pam_env.so user_readenv=1\n")
        box.write("/etc/pam.d/sshd", HOLES[hole] + box.read("/etc/pam.d/sshd"))
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        settle()
        assert box.ssh("ubuntu", "echo $IN_FORCE").stdout == "yes\n"  # it is a hole
        for detail in both(box):
            assert {name: detail[name] for name in NULL} == NULL

    def test_where_there_is_no_hole_their_file_changes_nothing(self, box: Instance) -> None:
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        assert box.ssh("ubuntu", "echo $IN_FORCE").stdout == "\n"
        for detail in both(box):
            assert detail["key_fingerprint"] == fingerprint(box, AUTHORIZED_KEYS)
            assert detail["connection"]["remote_host"] == REMOTE_HOST

    def test_a_hole_that_is_mended_during_the_session(self, box: Instance) -> None:
        """The environment of the logout is that of the login: mending the file doesn't clean it."""
        box.configure_pam(user_readenv=True)
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        settle()
        command = box.ssh_command(
            "ssh", "ubuntu@127.0.0.1", "cat", user="ubuntu", source=REMOTE_HOST
        )
        client = box.popen(command, stdin=subprocess.PIPE)
        box.eventbridge.wait_for(1)
        box.configure_pam(user_readenv=False)
        client.communicate()
        for detail in both(box):
            assert {name: detail[name] for name in NULL} == NULL

    def test_a_hole_that_is_mended_before_the_event_is_delivered(self, box: Instance) -> None:
        box.configure_pam(user_readenv=True)
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        box.eventbridge.set(fault="refuse")
        box.ssh("ubuntu", "true")
        box.syslog.wait_for("events wait in the spool")
        box.kill_deliverers()
        box.configure_pam(user_readenv=False)
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        for detail in both(box):
            assert {name: detail[name] for name in NULL} == NULL

    @pytest.mark.parametrize("mend", ["emptied", "removed", "replaced"])
    def test_a_hole_in_an_included_file_that_is_mended_before_the_event_is_delivered(
        self, mend: str, box: Instance
    ) -> None:
        box.write("/etc/pam.d/hole", "session required pam_env.so user_readenv=1\n")
        box.write("/etc/pam.d/harmless", "session optional pam_permit.so\n")
        box.write("/etc/pam.d/sshd", "@include hole\n" + box.read("/etc/pam.d/sshd"))
        box.write("/home/ubuntu/.pam_environment", FORGED, owner="ubuntu")
        settle()
        box.eventbridge.set(fault="refuse")
        assert box.ssh("ubuntu", "echo $IN_FORCE").stdout == "yes\n"
        box.syslog.wait_for("events wait in the spool")
        box.kill_deliverers()
        hole = box.path("/etc/pam.d/hole")
        if mend == "emptied":
            hole.write_text("")
        elif mend == "removed":
            hole.unlink()
        else:
            box.path("/etc/pam.d/harmless").rename(hole)
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        for detail in both(box):
            assert {name: detail[name] for name in NULL} == NULL

    def test_a_session_whose_beginning_is_not_known(self, box: Instance) -> None:
        """Nobody can tell then whether a hole was mended since."""
        box.eventbridge.set(fault="refuse")
        box.hook(before=[("SSH_CONNECTION", "9.9.9.9 9 9.9.9.9 9")])
        box.kill_deliverers()
        (name,) = box.spool()
        record = box.path(SPOOL) / name
        record.write_bytes(re.sub(rb"TATTLE_PARENT_START=\d*", b"", record.read_bytes()))
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        (detail,) = box.eventbridge.details()
        assert {name: detail[name] for name in NULL} == NULL

    def test_from_a_shell_nothing_of_it_is_told(self, box: Instance) -> None:
        """The environment of the smoke test is its caller's own."""
        variables = {
            "SSH_AUTH_INFO_0": f"publickey {FORGED_KEY}\n",
            "SSH_CONNECTION": "9.9.9.9 9 9.9.9.9 9",
            "TATTLE_UNVERIFIED_SSH_CONNECTION": "9.9.9.9 9 9.9.9.9 9",
        }
        login = {"PAM_TYPE": "open_session", "PAM_USER": "test"}
        assert box.run([TATTLE], env={**variables, **login}).returncode == 0
        (detail,) = box.eventbridge.details()
        assert {name: detail[name] for name in NULL} == NULL


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
        commands = [
            box.ssh_command("ssh", f"{user}@127.0.0.1", "sleep 1", user=user, source=REMOTE_HOST)
            for user in ("ubuntu", "alice", "ubuntu", "alice")
        ]
        clients = [box.popen(command) for command in commands]
        details = [entry.detail for entry in box.eventbridge.wait_for(8, timeout=30)]
        assert [client.wait() for client in clients] == [0] * 4
        opened, closed = (
            sorted(one["session_id"] for one in details if one["session"] == state)
            for state in ("opened", "closed")
        )
        assert opened == closed
        assert len(set(opened)) == 4
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
                numbers += [process.pid for process in box.processes("-IS -c")]
            box.eventbridge.wait_for(len(numbers))
            while box.spool():  # it is delivered, and soon removed
                time.sleep(0.01)
            box.kill_deliverers()
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
        before = time.monotonic()
        box.ssh("ubuntu", "sleep 2.2")
        longest = time.monotonic() - before
        opened, closed = both(box)
        assert "duration" not in opened
        assert isinstance(closed["duration"], int)
        assert 2 <= closed["duration"] <= longest

    def test_the_duration_does_not_depend_on_when_the_event_is_delivered(
        self, box: Instance
    ) -> None:
        box.eventbridge.set(fault="refuse")
        with box.session() as session:
            session.hook()
            session.hook("close_session")
        box.kill_deliverers()
        time.sleep(1.2)
        box.eventbridge.set(fault=None)
        assert box.run([TATTLE, "flush"]).returncode == 0
        _, closed = both(box)
        assert closed["duration"] == 0


class TestRedelivery:
    @pytest.mark.parametrize("fault", ["reset-after", "close-after"])
    def test_an_event_that_comes_twice_has_the_same_event_id(
        self, fault: str, box: Instance
    ) -> None:
        box.eventbridge.set(fault=fault, fault_times=1)
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
            session.hook(user="alice")
            box.kill_deliverers()
            session.hook("close_session", user="alice")
        box.kill_deliverers()
        box.eventbridge.set(fault=None)
        box.eventbridge.clear()
        assert box.run([TATTLE, "flush"]).returncode == 0
        again, *others = box.eventbridge.entries()
        assert again.raw == first.raw
        assert len({entry.detail["event_id"] for entry in (first, *others)}) == 3

    def test_events_that_look_the_same_have_different_ids(self, box: Instance) -> None:
        for _ in range(3):
            box.hook()
        details = [entry.detail for entry in box.eventbridge.wait_for(3)]
        assert len({detail["event_id"] for detail in details}) == 3
