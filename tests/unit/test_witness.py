"""The second witness: which sessions of logind's a hook should have reported."""

from __future__ import annotations

import functools
import math
import os
import time
from pathlib import Path

import pytest

from tattle.delivery import ledger, look, witness
from tattle.delivery.ledger import Machine
from tattle.delivery.records import OPEN, Records
from tattle.delivery.witness import Clocks, LogindSession, opened_record, parse_session, unreported
from tattle.event.fields import session_id
from tattle.event.pamd import Stack
from tattle.login.pam import is_whole, parse
from tattle.shell import check_witness

BOOT = "6c2f1d9e-5f0e-4d3b-9a51-3d9f9d2f7a10"
TICKS = os.sysconf("SC_CLK_TCK")
UP = 10_000.0  # seconds that the machine has been up
NOW = 1_800_000_000.0
CLOCKS = Clocks(NOW, UP, UP, BOOT)
LEADER = 41
# As loginctl of systemd 252, 257 and 262 shows it.
SHOWN = """\
Id=c3
Name=alice
TimestampMonotonic=901631160
TTY=
RemoteHost=1.2.3.4
Service=sshd
Leader=139
"""


def session(age: float = 300, **changes: object) -> LogindSession:
    plain = LogindSession("c3", "alice", "1.2.3.4", "sshd", LEADER, UP - age, "")
    return plain._replace(**changes)  # type: ignore[arg-type]


def start_of(pid: int) -> str | None:
    """The leader began a second before the session of most tests."""
    started = {LEADER: UP - 301, 43: UP - 100}
    return str(int(started[pid] * TICKS)) if pid in started else ""


def test_logind_s_sessions_are_read_as_loginctl_shows_them() -> None:
    expected = LogindSession("c3", "alice", "1.2.3.4", "sshd", 139, 901.63116, "")
    assert parse_session(SHOWN) == expected
    local = SHOWN.replace("RemoteHost=1.2.3.4\n", "").replace("TTY=", "TTY=tty1")
    assert parse_session(local) == expected._replace(remote_host="", tty="tty1")
    assert parse_session(SHOWN.replace("TTY=\n", "")) == expected


@pytest.mark.parametrize("line", ["Leader=139", "Name=alice", "Service=sshd", "Id=c3"])
def test_a_session_of_which_a_part_lacks_is_none(line: str) -> None:
    assert parse_session(SHOWN.replace(line, "")) is None


@pytest.mark.parametrize(
    ("one", "known", "since", "is_silenced"),
    [
        (session(), False, NOW - 1000, True),
        (session(), True, NOW - 1000, False),
        (session(59, leader=LEADER), False, NOW - 1000, False),
        (session(), False, NOW - 299, False),
        (session(), False, math.inf, False),
        (session(leader=42), False, NOW - 1000, False),
        (session(leader=43), False, NOW - 1000, False),
    ],
    ids=[
        *("nobody reported it", "it is known", "the hook may still run"),
        *("the stack has changed since", "the stack does not run tattle"),
        *("the leader is gone", "another process has the leader's id"),
    ],
)
def test_a_session_that_lives_and_that_no_hook_reported_was_silenced(
    one: LogindSession, known: bool, since: float, is_silenced: bool
) -> None:
    names = [f"{BOOT}.{LEADER}.{start_of(LEADER)}"] if known else []
    gone = session(leader=42)  # which is no reason not to look at the next one
    since_of = {"sshd": since}.__getitem__
    found = [*unreported([gone, one], names, start_of, CLOCKS, since_of)]
    assert bool(found) == is_silenced


def test_the_witness_s_opened_is_what_the_hook_would_have_said() -> None:
    (found,) = unreported([session(tty="pts/0")], [], start_of, CLOCKS, lambda service: 0.0)
    record = opened_record(found, [b"TATTLE_HOST=here", b"TATTLE_INSTANCE=i-abc"])
    opened = parse(record)
    assert is_whole(record)
    assert opened.state == "opened"
    assert opened.pam["PAM_USER"] == "alice"
    assert opened.pam["PAM_RHOST"] == "1.2.3.4"
    assert opened.pam["PAM_TTY"] == "pts/0"
    assert opened.pam["PAM_SERVICE"] == "sshd"
    assert opened.context["TATTLE_TIME"] == str(int((NOW - 300) * 1e9))
    assert opened.context["TATTLE_REPORTED_BY"] == "logind"
    assert opened.context["TATTLE_INSTANCE"] == "i-abc"
    hooks = {"BOOT": BOOT, "PARENT": str(LEADER), "PARENT_START": str(start_of(LEADER))}
    of_hook = parse(b"PAM_USER=u\0PAM_TYPE=open_session\0")
    of_hook.context = {f"TATTLE_{part}": value for part, value in hooks.items()}
    assert session_id(opened) == session_id(of_hook)


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ("exit 0", []),
        ("echo 'System has not been booted with systemd' >&2; exit 1", None),
        ("echo $$ >$0.pid; exec sleep 60", None),
        (None, None),
        ("echo c1; while :; do echo c1; done", None),
    ],
    ids=["no sessions", "no logind", "no answer", "no loginctl", "no end of answers"],
)
def test_loginctl_is_asked_for_a_limited_time(
    script: str | None, ids: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert asked(script, tmp_path, monkeypatch) == ids
    assert time.monotonic() - began < 5
    for started in tmp_path.glob("*.pid"):
        assert not Path("/proc", started.read_text().strip()).exists()


def test_a_session_that_ends_while_logind_is_asked_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loginctl stops at the first that it does not find."""
    script = f"""
        case $* in *list-sessions*) echo 1; echo 2; echo 3; echo 4; exit;; esac
        separator=
        for word in "$@"; do
            case $word in
            1|4) printf '%s{SHOWN.replace("c3", "%s")}' "$separator" $word; separator='\n';;
            2|3) echo "No session '$word' known" >&2; exit 1;;
            esac
        done
    """
    assert asked(script, tmp_path, monkeypatch) == ["1", "4"]


def asked(script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str] | None:
    """The ids of the sessions that a loginctl tells of which is that script, if there is one."""
    loginctl = tmp_path / "loginctl"
    if script is not None:
        loginctl.write_text(f"#!/bin/sh\n{script}\n")
        loginctl.chmod(0o755)
    monkeypatch.setattr(witness, "LOGINCTL", str(loginctl))
    monkeypatch.setattr(witness, "LOGIND", str(tmp_path))
    monkeypatch.setattr(witness, "LOGINCTL_SECONDS", 0.5)
    sessions = witness.logind_sessions()
    return None if sessions is None else [session.id for session in sessions]


PAM = "session optional pam_systemd.so\n"


@pytest.mark.parametrize(
    ("script", "stack", "booted", "severity", "text"),
    [
        ("exit 0", PAM, True, "ok", "logind tells of a session"),
        ("exit 0", "session required pam_unix.so\n", True, "warning", "no line runs pam_systemd"),
        ("sleep 60", PAM, True, "warning", "takes longer than"),
        ("exit 1", PAM, False, "ok", "there is no systemd-logind"),
    ],
    ids=["both", "not registered", "no answer", "no systemd"],
)
def test_check_says_which_witness_there_is(
    script: str,
    stack: str,
    booted: bool,
    severity: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "etc/pam.d").mkdir(parents=True)
    (tmp_path / "etc/pam.d/sshd").write_text(stack)
    monkeypatch.setattr(check_witness, "services", lambda: ["sshd"])
    monkeypatch.setattr(check_witness, "Stack", functools.partial(Stack, root=str(tmp_path)))
    monkeypatch.setattr(check_witness, "SYSTEMD", str(tmp_path if booted else tmp_path / "none"))
    asked(script, tmp_path, monkeypatch)
    (finding,) = check_witness.probe()
    assert finding.severity == severity
    assert text in finding.message
    assert bool(finding.advice) == (severity != "ok")


def test_the_sessions_are_looked_at_once_a_minute_by_whoever_has_which_spools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, emergency = Records(str(tmp_path / "spool")), Records(str(tmp_path / "emergency"))
    looks: list[object] = []

    monkeypatch.setattr(look, "report_unreported", lambda *_: looks.append(None))
    monkeypatch.setattr(look, "PATH", spool.path)
    look.look([spool, emergency])
    look.look([spool])
    look.look([emergency, spool])
    assert len(looks) == 1
    os.utime(tmp_path / "spool" / look.LOOKED, (0, time.time() - 61))
    look.look([spool])
    assert len(looks) == 2


@pytest.mark.parametrize("place", ["", ".", "rejected", OPEN])
def test_what_is_reported_already_is_not_reported_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Records(str(tmp_path / "spool"))
    ledger.begin(spool)
    monkeypatch.setattr(witness, "logind_sessions", lambda: [session(began=time.monotonic() - 99)])
    monkeypatch.setattr(look, "start_of", lambda pid: "0")
    monkeypatch.setattr(look, "reported_since", lambda began, service: 0.0)
    name = f"{BOOT}.{LEADER}.0"
    if place:
        record = (
            f"PAM_USER=u\0PAM_TYPE=open_session\0TATTLE_PARENT={LEADER}\0TATTLE_PARENT_START=0\0"
        )
        file = tmp_path / "spool" / place / (name if place == OPEN else f"{0:020}-1")
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{record}TATTLE_PARENT_START=0\0TATTLE_BOOT={BOOT}\0")
    before = os.listdir(spool.path)
    look.report_unreported([spool], Machine(BOOT, ""))
    look.report_unreported([spool], Machine(BOOT, ""))
    assert len(os.listdir(spool.path)) - len(before) == (0 if place else 1)


@pytest.mark.parametrize("there", [True, False])
def test_a_logind_that_does_not_answer_is_told_of(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user may keep it busy, and would be seen by nobody."""
    told: list[str] = []
    monkeypatch.setattr(look, "log", told.append)
    monkeypatch.setattr(witness, "LOGINCTL", "/bin/false")
    monkeypatch.setattr(witness, "LOGIND", str(tmp_path) if there else "/nowhere")
    look.report_unreported([Records(str(tmp_path / "spool"))], Machine(BOOT, ""))
    assert len(told) == there


def test_hooks_report_since_the_ledger_began_and_the_stack_last_changed(tmp_path: Path) -> None:
    (tmp_path / "etc/pam.d").mkdir(parents=True)
    (tmp_path / "etc/pam.d/sshd").write_text("session optional pam_exec.so /usr/local/bin/tattle\n")
    since = functools.partial(look.reported_since, root=str(tmp_path))
    changed = (tmp_path / "etc/pam.d/sshd").stat().st_ctime
    assert since(0.0, "sshd") == changed
    assert since(changed + 9, "sshd") == changed + 9
    assert since(0.0, "login") == math.inf, "its stack does not run tattle"
    assert since(0.0, "../sshd") == math.inf
    (tmp_path / "etc/pam.d/sshd").rename(tmp_path / "etc/pam.d/systemd-user")
    assert since(0.0, "systemd-user") == math.inf, "another process closes its sessions"


def test_a_process_is_what_it_was_started_as() -> None:
    (own,) = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19:20]
    assert look.start_of(os.getpid()) == own
    child = os.posix_spawn("/bin/true", ["true"], {})
    while b") Z " not in Path(f"/proc/{child}/stat").read_bytes():
        time.sleep(0.01)
    assert look.start_of(child) == "", "it has ended, though nobody has waited for it"
    os.waitpid(child, 0)
    assert look.start_of(child) == ""
