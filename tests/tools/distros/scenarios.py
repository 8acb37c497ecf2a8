"""What is done in each release: logins of every kind, what is told of them, and what `check` says.

A scenario is a function of the instance that returns when all is as it should be, raises Skipped
where the release lacks what it is about, and AssertionError where tattle is wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from check_json import Finding, check
from standins.eventbridge import Entry
from standins.instance import PAM_ENVIRONMENT, REMOTE_HOST, SYSTEM_PYTHON, TATTLE, Instance
from standins.large_keys import LargeKey, certificate, security_key
from support import eventually

PASSWORD = "pw"
ASKPASS = "/root/askpass"
MOST_ROUNDS = 4  # of following what `check` advises: one finding may hide another
FIELDS = (
    "username remote_host session service tty remote_user hostname time event_id session_id"
    " duration auth_method key_fingerprint connection private_ip availability_zone instance_type"
    " image_id tag:Name"
)
EXAMPLE_FIELDS = "service username remote_user session session_id"
KEY_TYPES = ("ed25519", "rsa", "ecdsa", "mldsa44-ed25519")
NOW = f"{SYSTEM_PYTHON} -IS -c 'import time; print(time.monotonic())'"
GIVE_UP_AFTER_SECONDS = 20.0  # a failure, not a limit that is tested
CLOCK_SECONDS = 1.0  # by which sshd may close a session later than its client left


class Skipped(Exception):  # noqa: N818
    """What the scenario needs and isn't there."""


def prepare(box: Instance) -> None:
    """What every scenario starts from: sshd's lines as README.md has them added, and a user with a
    password who may use sudo."""
    add_sshds_lines(box)
    box.run(["chpasswd"], input=f"alice:{PASSWORD}\n", check=True)
    box.write("/etc/sudoers.d/ubuntu", "ubuntu ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    box.write(ASKPASS, f"#!/bin/sh\necho {PASSWORD}\n", 0o700)
    box.keep()


# What the scenarios share


def pair(box: Instance, quietly: bool = True) -> list[Entry]:
    """The two events of the session that just ended, and no more; `quietly`: and no line of log."""
    arrived = box.eventbridge.entries
    until(lambda: len(arrived()) >= 2, "not both events arrive")
    until(lambda: not box.spool(), "what arrived stays in the spool")
    entries = arrived()
    states = [entry.detail["session"] for entry in entries]
    assert states == ["opened", "closed"], f"told: {states}"
    told = [line.message for line in box.log()]
    assert not (told and quietly), f"in the log: {told}"
    return entries


def until(condition: Callable[[], object], complaint: str) -> None:
    try:
        eventually(condition, GIVE_UP_AFTER_SECONDS)
    except AssertionError:
        raise AssertionError(complaint) from None


def succeeds(done: Any) -> str:
    assert done.returncode == 0, (
        f"{done.args[0]} ends with {done.returncode}: {done.stderr.strip()}"
    )
    return str(done.stdout)


def complaints(box: Instance) -> list[Finding]:
    return [finding for finding in check(box) if finding.is_fault]


def follow_advice(box: Instance, but_for: str = "") -> list[Finding]:
    """Do what `check` advises, word for word, until it is content; what it had found. What it says
    of `but_for` is left to another scenario."""
    found: list[Finding] = []
    for _ in range(MOST_ROUNDS):
        bad = [finding for finding in complaints(box) if finding.id != but_for]
        if not bad:
            return found
        for finding in bad:
            assert finding not in found, f"{finding}, though its advice was followed"
            done = box.run(["sh", "-c", finding.advice])
            assert done.returncode == 0, f"{finding}, and its advice fails: {done.stderr.strip()}"
        found += bad
    raise AssertionError(f"{found[-1]}, and so on without end")


def add_line(box: Instance, service: str) -> None:
    """Put the PAM line at the end of a service's file, as README.md says for sudo."""
    box.write(f"/etc/pam.d/{service}", box.read(f"/etc/pam.d/{service}"))  # for the reset
    line = f"session    [success=ok default=die] pam_exec.so seteuid {TATTLE}"
    succeeds(box.run(["sh", "-c", f"echo '{line}' >>/etc/pam.d/{service}"]))


def add_sshds_lines(box: Instance, user_readenv: bool | None = None) -> None:
    box.configure_pam(user_readenv=user_readenv)
    box.write(PAM_ENVIRONMENT, "")
    succeeds(box.run(["sh", "-c", f"{TATTLE} recipe pam | sh"]))


def with_password(box: Instance, method: str, *command: str) -> str:
    """Log in as alice with her password, asked for by that method; the command's output."""
    options = [
        f"BindAddress={REMOTE_HOST}",
        f"PreferredAuthentications={method}",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ]
    flags = [flag for option in options for flag in ("-o", option)]
    environment = {"SSH_ASKPASS": ASKPASS, "SSH_ASKPASS_REQUIRE": "force"}
    ssh = ["ssh", "-F", "none", *flags, "alice@127.0.0.1", *command]
    return succeeds(box.run(ssh, env=environment))


def configure_fields(box: Instance, fields: str) -> None:
    box.write("/etc/tattle.conf", f"[tattle]\nfields = {fields}\n")


# The scenarios


def version(box: Instance) -> None:
    told = succeeds(box.run([TATTLE, "--version"]))
    assert re.match(r"tattle \d+\.\d+", told), told


def smoke_test(box: Instance) -> None:
    session = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
    told = succeeds(box.run([TATTLE], env=session))
    assert told.startswith("sent: session opened for test, event id "), told
    (entry,) = box.eventbridge.entries()
    assert entry.detail == {"username": "test", "remote_host": "test", "session": "opened"}


def no_warnings(box: Instance) -> None:
    """Unpack, compile and publish with every warning of Python's an error."""
    box.run(["sh", "-c", "rm -rf /var/cache/tattle"], check=True)
    session = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
    python = [SYSTEM_PYTHON, "-W", "error", "-I", "-S", "-X", "utf8", TATTLE]
    succeeds(box.run(python, env=session))
    assert len(box.eventbridge.entries()) == 1
    told = box.run([*python, "check"])
    assert not told.stderr, told.stderr


def ssh(box: Instance) -> None:
    began = int(time.time())
    assert succeeds(box.ssh("alice", "echo", "hello")) == "hello\n"
    ended = time.time()
    for entry, state in zip(pair(box), ("opened", "closed")):
        assert began <= entry.raw["Time"] <= ended + CLOCK_SECONDS
        assert entry.detail == {"username": "alice", "remote_host": REMOTE_HOST, "session": state}


def scp(box: Instance) -> None:
    box.write("/root/file", "content\n")
    succeeds(box.scp("alice", "/root/file", "copy"))
    assert box.read("/home/alice/copy") == "content\n"
    pair(box)


def sftp(box: Instance) -> None:
    assert "made" in succeeds(box.sftp("alice", "mkdir made\nls\n"))
    pair(box)


def pty(box: Instance) -> None:
    told = succeeds(box.ssh("alice", "tty", options=["-tt"]))
    assert told.startswith("/dev/pts/"), told
    pair(box)


def password(box: Instance) -> None:
    believe_sshd(box)
    configure_fields(box, "session auth_method key_fingerprint")
    box.start_sshd("PasswordAuthentication yes")
    assert with_password(box, "password", "echo", "hello") == "hello\n"
    for entry in pair(box):
        assert (entry.detail["auth_method"], entry.detail["key_fingerprint"]) == ("password", None)


def keyboard_interactive(box: Instance) -> None:
    believe_sshd(box)
    configure_fields(box, "session auth_method")
    box.start_sshd("ChallengeResponseAuthentication yes")  # KbdInteractive… before OpenSSH 8.7
    assert with_password(box, "keyboard-interactive", "echo", "hello") == "hello\n"
    for entry in pair(box):
        assert entry.detail["auth_method"] == "keyboard-interactive/pam"


def believe_sshd(box: Instance) -> None:
    """Have a PAM stack in which no user has a say, and which is older than what follows."""
    add_sshds_lines(box, user_readenv=False)
    time.sleep(0.1)


def fields(box: Instance) -> None:
    """Every field, for every kind of key that this OpenSSH can make, and for its certificate."""
    believe_sshd(box)
    configure_fields(box, FIELDS)
    box.imds.set(tags={"Name": "bastion"})
    ca = "/root/.ssh/ca"
    ssh_keygen(box, "-t", "ed25519", "-f", ca)
    box.write("/etc/ssh/ca.pub", box.read(f"{ca}.pub"))
    box.start_sshd("TrustedUserCAKeys /etc/ssh/ca.pub")
    known = succeeds(box.run(["ssh", "-Q", "key"])).split()
    wrong = []
    for kind in KEY_TYPES:
        if not any(kind in name for name in known):
            continue
        key = f"/root/.ssh/{kind}"
        ssh_keygen(box, "-t", kind, "-f", key)
        allowed = box.read("/home/alice/.ssh/authorized_keys")
        box.write("/home/alice/.ssh/authorized_keys", box.read(f"{key}.pub"), 0o600, "alice")
        wrong += told_of_key(box, kind, key, f"{key}.pub")
        # The key alone is not allowed now, only its certificate.
        box.write("/home/alice/.ssh/authorized_keys", allowed, 0o600, "alice")
        ssh_keygen(box, "-s", ca, "-I", "alice", "-n", "alice", f"{key}.pub")
        wrong += told_of_key(box, f"a certificate of {kind}", key, f"{key}-cert.pub")
    assert not wrong, "; ".join(wrong)


def told_of_key(box: Instance, kind: str, key: str, public: str) -> list[str]:
    """Log in with that key, compare what the release decides; what is wrong with the print."""
    box.eventbridge.clear()
    command = box.ssh_command(
        "ssh",
        "alice@127.0.0.1",
        'echo "$SSH_CONNECTION"; sleep 1',
        user="alice",
        source=REMOTE_HOST,
    )
    command = [key if word == "alice" else word for word in command]
    command = [word.replace("/root/.ssh/alice", key) for word in command]
    remote, remote_port, local, local_port = succeeds(box.run(command)).split()
    opened, closed = (entry.detail for entry in pair(box))
    assert list(closed) == FIELDS.split()
    assert 1 <= closed.pop("duration") <= GIVE_UP_AFTER_SECONDS, closed
    assert opened["session_id"]
    for detail in (opened, closed):
        for name in ("session", "time", "event_id"):
            assert detail.pop(name), name
    assert opened == closed
    assert opened["auth_method"] == "publickey"
    assert opened["connection"] == {
        "remote_host": remote,
        "remote_port": int(remote_port),
        "local_host": local,
        "local_port": int(local_port),
    }
    fingerprint = ssh_keygen(box, "-lf", public).split()[1]
    right = opened["key_fingerprint"] == fingerprint
    return [] if right else [f"key_fingerprint of {kind} is not ssh-keygen -lf's"]


def early(box: Instance) -> None:
    """The lines before those that make it a session of logind's."""
    believe_sshd(box)
    succeeds(box.run(["sh", "-c", f"{TATTLE} recipe pam | sh -s early"]))
    stack = box.read("/etc/pam.d/sshd")
    assert stack.rindex(TATTLE) < stack.index("@include common-session")
    ssh(box)


def large_key(box: Instance, key: LargeKey) -> None:
    """What is larger than execve(2) takes is reported once, too, and known as little as need be."""
    believe_sshd(box)
    configure_fields(box, "username remote_host session auth_method")
    with key(box, "alice") as options:
        assert succeeds(box.ssh("alice", "echo", "hello", options=options)) == "hello\n"
    for entry in pair(box):
        assert (entry.detail["username"], entry.detail["auth_method"]) == ("alice", None)


def ssh_keygen(box: Instance, *arguments: str) -> str:
    quiet = [] if "-lf" in arguments else ["-q"]
    passphrase = ["-N", ""] if "-t" in arguments else []
    return succeeds(box.run(["ssh-keygen", *quiet, *passphrase, *arguments]))


def session_of(
    box: Instance, line_in: str, service: str, command: Sequence[str], user: str
) -> None:
    """With the PAM line in one service's file and what `check` advises then, a session of that or
    another service, which makes `ubuntu` that user, is told once."""
    believe_sshd(box)
    configure_fields(box, EXAMPLE_FIELDS)
    add_line(box, line_in)
    for name in (f"{line_in}-i", f"{line_in}-l"):
        if box.path(f"/etc/pam.d/{name}").exists():
            box.write(f"/etc/pam.d/{name}", box.read(f"/etc/pam.d/{name}"))  # for the reset
    advice = follow_advice(box, but_for="sshd")
    succeeds(box.run(command, user="ubuntu", input=f"{PASSWORD}\n"))
    try:
        opened, closed = pair(box)
    except AssertionError as error:
        found = "; ".join(map(str, advice)) or "check finds nothing"
        raise AssertionError(f"line in {line_in}, {found}, yet of {service}: {error}") from error
    if not box.path(f"/etc/pam.d/{service}").exists():
        service = line_in  # this release's sudo -i is sudo to PAM
    assert opened.detail["session_id"] == closed.detail["session_id"]
    for entry in (opened, closed):
        assert entry.detail["service"] == service, entry.detail
        assert (entry.detail["username"], entry.detail["remote_user"]) == (user, "ubuntu"), (
            entry.detail
        )


def wait(box: Instance) -> None:
    box.configure_pam("--wait")
    box.eventbridge.set(delay=0.5)  # else it may have arrived by then anyway
    now = float(succeeds(box.ssh("ubuntu", NOW)))
    opened, _ = pair(box)
    assert opened.arrived + 0.5 <= now, "the login went on before the event was sent"


def advice(box: Instance) -> None:
    """`check` finds the missing PAM line and nothing that isn't wrong, and its advice is all that
    it takes."""
    box.write("/etc/pam.d/sshd", without_tattle(box))
    box.write("/etc/ssh/sshd_config", box.read("/etc/ssh/sshd_config"))  # for the reset
    bad = complaints(box)
    assert any((one.id, one.service) == ("pam", "sshd") for one in bad), "check misses no PAM line"
    other = [str(one) for one in bad if one.id not in ("pam", "environment")]
    assert not other, "; ".join(other)
    follow_advice(box)
    succeeds(box.ssh("alice", "true"))
    pair(box)


def without_tattle(box: Instance) -> str:
    """sshd's stack without our line."""
    pam = box.read("/etc/pam.d/sshd").splitlines(keepends=True)
    return "".join(line for line in pam if TATTLE not in line)


def no_run_sshd(box: Instance) -> None:
    """/run/sshd is missing where sshd is started by a socket and nobody has come yet: that is no
    fault of sshd's configuration. Before OpenSSH 9.3 it does not say what that is: a warning."""
    believe_sshd(box)
    box.path("/run/sshd").rmdir()
    try:
        warned = follow_advice(box)
    finally:
        box.path("/run/sshd").mkdir(0o755, exist_ok=True)
    only_warnings(warned)


def only_warnings(found: list[Finding]) -> None:
    assert not [one for one in found if one.severity == "error"], "; ".join(map(str, found))


def pam_service_name(box: Instance) -> None:
    """sshd may call itself something else, and with it another file of /etc/pam.d."""
    if box.run(["/usr/sbin/sshd", "-T", "-o", "PAMServiceName=ssh-alt"]).returncode:
        raise Skipped("sshd has no PAMServiceName")
    box.configure_pam(user_readenv=False)
    box.write("/etc/pam.d/ssh-alt", without_tattle(box))
    configure_fields(box, "service session")
    box.start_sshd("PAMServiceName ssh-alt")
    time.sleep(0.1)
    bad = complaints(box)
    assert any("ssh-alt" in str(finding) for finding in bad), (
        "check says nothing of ssh-alt, which sshd names" + "".join(f"; {one}" for one in bad)
    )
    follow_advice(box)
    succeeds(box.ssh("alice", "true"))
    assert {entry.detail["service"] for entry in pair(box)} == {"ssh-alt"}


SCENARIOS: dict[str, Callable[[Instance], None]] = {
    "version": version,
    "smoke": smoke_test,
    "-W error": no_warnings,
    "ssh": ssh,
    "scp": scp,
    "sftp": sftp,
    "pty": pty,
    "password": password,
    "kbd-int": keyboard_interactive,
    "fields": fields,
    "certificate": lambda box: large_key(box, certificate),
    "sk key": lambda box: large_key(box, security_key),
    "early": early,
    "sudo": lambda box: session_of(box, "sudo", "sudo", ["sudo", "true"], "root"),
    "sudo -i": lambda box: session_of(box, "sudo", "sudo-i", ["sudo", "-i", "true"], "root"),
    "su": lambda box: session_of(box, "su", "su", ["su", "alice", "-c", "true"], "alice"),
    "su -": lambda box: session_of(box, "su", "su-l", ["su", "-", "alice", "-c", "true"], "alice"),
    "--wait": wait,
    "check": advice,
    "no /run/sshd": no_run_sshd,
    "ServiceName": pam_service_name,
}
