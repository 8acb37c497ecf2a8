"""Who tells of a session if its hook can't: the ledger, of its end; and logind, of its beginning.

Each scenario ends with one `opened` and one `closed` of every session, and with who reported them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory

from standins.instance import REMOTE_HOST, SPOOL, TATTLE, Instance
from support import ARTIFACT, changed
from tools.distros.scenarios import GIVE_UP_AFTER_SECONDS, believe_sshd, succeeds, until

FIELDS = "username session service session_id reported_by"
LIMITS = "/etc/security/limits.d/none.conf"
KEY, CA = "/root/.ssh/big", "/root/.ssh/big-ca"
LONG_KEY_ID = "x" * 110_000  # with it sshd's variables no longer fit into an execve(2)
AT_ONCE = 60
BY_PAM = [("opened", "pam"), ("closed", "pam")]
ENDED_UNSEEN = [("opened", "pam"), ("closed", "process")]


def begin(box: Instance) -> None:
    """Have a ledger that is older than the sessions to come."""
    box.write("/etc/tattle.conf", f"[tattle]\nfields = {FIELDS}\n")
    look(box)
    time.sleep(1.1)  # a file's time may lag behind the clock, and logind's is asked a moment later


def look(box: Instance) -> None:
    """What the timer does, though a minute has not passed since the last time."""
    looked = box.path(f"{SPOOL}/open/.looked")
    if looked.exists():
        box.run(["touch", "--date=1 hour ago", f"{SPOOL}/open/.looked"])
    box.run([TATTLE, "flush"])


def reports(box: Instance) -> list[list[tuple[str, str]]]:
    """What was told of each session, and by whom."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in box.eventbridge.entries():
        event = entry.detail
        found.setdefault(event["session_id"], []).append((event["session"], event["reported_by"]))
    return [*found.values()]


def look_until(box: Instance, condition: Callable[[], object], complaint: str) -> None:
    def seen() -> object:
        look(box)
        return condition()

    until(seen, complaint)


def expect(box: Instance, *sessions: list[tuple[str, str]]) -> None:
    """These sessions are told of, after some looks, and one more does not change that."""
    expected = [*sessions]
    look_until(box, lambda: len(reports(box)) == len(expected), "not every session is told of")
    look_until(box, lambda: reports(box) == expected, f"something else than {expected}")
    look(box)
    assert reports(box) == expected


@contextmanager
def logged_in(
    box: Instance, user: str, command: str = "sleep 60", key: str | None = None
) -> Iterator[None]:
    """A session that is open while entered. `key` is a file's name in /root/.ssh."""
    arguments = [f"{user}@127.0.0.1", f"echo in; {command}"]
    ssh = box.ssh_command("ssh", *arguments, user=key or user, source=REMOTE_HOST)
    with box.popen(ssh, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as client:
        assert client.stdout
        assert client.stdout.readline() == "in\n", client.communicate()
        try:
            yield
        finally:
            box.kill(*box.processes("ssh -F none"))


def kill_session(box: Instance, user: str) -> None:
    """Kill sshd's process for a session, which would close it."""
    title = re.compile(rf"sshd(-session)?: {user} \[(priv|postauth)\]")
    leaders = [one for one in box.processes("sshd") if title.match(" ".join(one.command))]
    assert leaders, f"{user} has no session"
    box.kill(*leaders)


def killed(box: Instance) -> None:
    begin(box)
    with logged_in(box, "alice"):
        box.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
        kill_session(box, "alice")
        expect(box, ENDED_UNSEEN)


def refused(box: Instance) -> None:
    """A `required` line that fails does not end the stack: tattle's line is run all the same."""
    begin(box)
    box.write(LIMITS, "alice hard maxlogins 0\n")
    try:
        assert box.ssh("alice", "true").returncode != 0
    finally:
        box.path(LIMITS).unlink()
    expect(box, ENDED_UNSEEN)


def reboot(box: Instance) -> None:
    begin(box)
    with logged_in(box, "alice"), logged_in(box, "ubuntu"):
        box.eventbridge.wait_for(2, GIVE_UP_AFTER_SECONDS)
        until(lambda: not box.spool(), "what arrived stays in the spool")
        box.reboot()
    expect(box, ENDED_UNSEEN, ENDED_UNSEEN)


def terminated(box: Instance) -> None:
    """logind ends a session that has 400 processes."""
    begin(box)
    crowd = "for i in $(seq 400); do sleep 1000 & done; wait"
    with logged_in(box, "alice", crowd):
        until(lambda: len(box.processes("sleep 1000")) >= 400, "they don't start")
        sessions = box.run(["loginctl", "--no-legend", "list-sessions"]).stdout.splitlines()
        for session in sessions:
            box.run(["loginctl", "terminate-session", session.split()[0]])
        until(lambda: not box.processes("sleep 1000"), "logind does not end them")
        look_until(box, lambda: len(reports(box)[0]) > 1, "it is not closed")
    told = reports(box)
    assert told in ([BY_PAM], [ENDED_UNSEEN]), told


@contextmanager
def quick_witness(box: Instance) -> Iterator[None]:
    """A tattle for which a session is old enough to be judged after three seconds."""
    with TemporaryDirectory() as folder:
        quick = Path(folder, "tattle")
        changed(ARTIFACT, quick, r"^GRACE_SECONDS = .*", "GRACE_SECONDS = 3.0")
        box.install(quick)
    try:
        begin(box)
        yield
    finally:
        box.install(ARTIFACT)


def silenced(box: Instance) -> None:
    """A key id of 110 KB, and the one line that README had before: pam_exec can't run the hook,
    neither at the session's beginning nor at its end."""
    for arguments in (
        ("-t", "ed25519", "-N", "", "-f", KEY),
        ("-t", "ed25519", "-N", "", "-f", CA),
        ("-s", CA, "-I", LONG_KEY_ID, "-n", "alice", f"{KEY}.pub"),
    ):
        succeeds(box.run(["ssh-keygen", "-q", *arguments]))
    keys = "/home/alice/.ssh/authorized_keys"
    box.write(keys, f"{box.read(keys)}cert-authority {box.read(f'{CA}.pub')}", owner="alice")
    box.configure_pam(user_readenv=False)
    with quick_witness(box):
        with logged_in(box, "alice", key="big"):
            look_until(box, lambda: reports(box), "nobody reports the session")
            told = reports(box)
            assert told == [[("opened", "logind")]], told
        expect(box, [("opened", "logind"), ("closed", "process")])
    believe_sshd(box)
    (line,) = box.log_with("not reported by PAM")
    assert "alice from 1.2.3.4, service sshd" in line


def no_false_alarm(box: Instance) -> None:
    """Many logins at once, and what runs in them: each is told of by PAM alone."""
    with quick_witness(box):
        ssh = box.ssh_command("ssh", "alice@127.0.0.1", "sleep 6", user="alice", source=REMOTE_HOST)
        clients = [box.popen(ssh, stdin=DEVNULL, stderr=DEVNULL) for _ in range(AT_ONCE)]
        while any(client.poll() is None for client in clients):
            look(box)
            box.run(["su", "alice", "-c", "true"])
            box.run(["sudo", "-u", "alice", "true"])
            succeeds(box.scp("alice", "/etc/hostname", "name"))
        came_in = sum(client.wait() == 0 for client in clients)

        def all_told() -> bool:
            told = reports(box)
            return len(told) > came_in and all(len(events) > 1 for events in told)

        look_until(box, all_told, "not all are told of")
        wrong = [told for told in reports(box) if told != BY_PAM]
        assert not wrong, wrong[:3]
    assert box.log_with("not reported by PAM") == []


WITHOUT_SYSTEMD: dict[str, Callable[[Instance], None]] = {
    "killed session": killed,
    "refused session": refused,
    "reboot with sessions": reboot,
}
WITH_SYSTEMD: dict[str, Callable[[Instance], None]] = {
    "killed, systemd": killed,
    "refused, systemd": refused,
    "terminated session": terminated,
    "silenced session": silenced,
    "no false alarm": no_false_alarm,
}
