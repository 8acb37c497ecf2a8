"""Real ssh, scp and sftp sessions, and what the hook does on the path of a login."""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from standins.eventbridge import Rejection
from standins.instance import REMOTE_HOST, SPOOL, STRACE_LOG, TATTLE, Instance
from support import eventually, is_the_default_event
from tattle.login import hook

pytestmark = pytest.mark.root

CACHE = "/var/cache/tattle"
QUICK_SECONDS = 4.0  # a login that waited for nothing, on a busy machine: far below any timeout
HOOK_MEMORY_KIB = 16 * 1024
# What the login's path may read of the archive, and what it needs besides to make the spool.
LOGIN = ("__init__", "hook", "pam", "process", "spool")
ON_THE_PATH = {
    f"site-packages/tattle/{name}.py" for name in ("__init__", *(f"login/{name}" for name in LOGIN))
}
FIRST_USE = {f"site-packages/tattle/{name}.py" for name in ("trust", "errors")}


def ssh(box: Instance) -> None:
    done = box.ssh("alice", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done


def scp(box: Instance) -> None:
    box.write("/root/file", "content\n")
    assert box.scp("alice", "/root/file", "copy").returncode == 0
    assert box.read("/home/alice/copy") == "content\n"


def sftp(box: Instance) -> None:
    done = box.sftp("alice", "mkdir made\nls\n")
    assert done.returncode == 0, done
    assert "made" in done.stdout


@pytest.mark.parametrize("session", [ssh, scp, sftp])
def test_a_session_gives_one_opened_and_one_closed_event(
    instance: Instance, session: Callable[[Instance], None]
) -> None:
    began = time.time()
    session(instance)
    instance.eventbridge.wait_for(2)
    eventually(lambda: not instance.spool())
    instance.kill_deliverers()
    opened, closed = instance.eventbridge.entries()
    assert is_the_default_event(opened, "alice", REMOTE_HOST, "opened", began)
    assert is_the_default_event(closed, "alice", REMOTE_HOST, "closed", began)
    assert instance.spool() == []
    assert instance.log() == []


def members_read(trace: list[str], archive: Path) -> set[str]:
    """The names of the archive's files at whose start somebody went to read."""
    with zipfile.ZipFile(archive) as file:
        starts = {info.header_offset: info.filename for info in file.infolist()}
    sought = (re.match(r"lseek\(\d+, (\d+), SEEK_SET", call) for call in trace)
    return {starts[int(at[1])] for at in sought if at and int(at[1]) in starts}


def test_the_first_login_after_an_install_unpacks_nothing(
    instance: Instance, artifact: Path
) -> None:
    cache = instance.path(CACHE)
    shutil.rmtree(cache, ignore_errors=True)
    # Delayed by half a second: the deliverer, before it does anything that takes long.
    slow_deliverer = ["-e", "inject=setpriority:delay_enter=500000"]
    with instance.session() as session:
        result = session.hook(strace=slow_deliverer)
        assert result.returncode == 0
        assert not cache.exists()
        assert len(instance.spool()) == 1
    instance.eventbridge.wait_for(1)
    calls = [
        call
        for pid, call in re.findall(r"^(\d+) +(.+)$", instance.read(STRACE_LOG), re.MULTILINE)
        if int(pid) == result.pid
    ]
    assert calls[-1] == "+++ exited with 0 +++"
    assert members_read(calls, artifact) - FIRST_USE == ON_THE_PATH
    written = [call for call in calls if re.search(r"O_(WRONLY|RDWR|CREAT)", call)]
    files = [re.findall(r'^openat\(\d+, "(\.[a-z]+)', call) for call in written]
    assert files == [[".accepting"]], written
    # A user who can stop a hook, such as su's, must not thereby hold what others need.
    assert [call for call in calls if call.startswith("flock")] == []
    unpacked = [call for call in calls if CACHE in call or "botocore" in call]
    assert [call for call in unpacked if not re.match(r"(newf?|l)stat|read\(", call)] == []
    assert [call for call in calls if re.match(r"(socket|connect|sendto|unlink)", call)] == []
    changed = [call for call in calls if re.match(r"(mkdir|rename|link|unlink|chmod|ch?own)", call)]
    assert [call.partition("(")[0] for call in changed] == ["mkdir", "renameat"], changed
    assert SPOOL in changed[0]


def test_the_hook_takes_little_memory(instance: Instance) -> None:
    with instance.session() as session:
        assert session.hook().max_rss_kib <= HOOK_MEMORY_KIB


def test_a_login_is_not_held_up_by_pam_execs_option_stdout(instance: Instance) -> None:
    instance.eventbridge.set(fault="hang")  # so that the child lives for long
    pam = instance.read("/etc/pam.d/sshd")
    instance.write("/etc/pam.d/sshd", pam.replace("pam_exec.so", "pam_exec.so stdout"))
    began = time.monotonic()
    assert instance.ssh("ubuntu", "true").returncode == 0
    assert time.monotonic() - began < QUICK_SECONDS
    with instance.session() as session:
        result = session.hook(stdout=True)
        assert (result.returncode, result.output) == (0, b"")
        assert result.seconds < QUICK_SECONDS
    eventually(instance.deliverers)


def test_a_failed_login_sends_nothing(instance: Instance) -> None:
    instance.write("/root/.ssh/alice", instance.read("/root/.ssh/ubuntu"), 0o600)
    assert "Permission denied" in instance.ssh("alice", "true").stderr
    assert instance.ssh("nobody", "true").returncode == 255
    assert instance.ssh("ubuntu", "true").returncode == 0
    entries = instance.eventbridge.wait_for(2)
    assert {entry.detail["username"] for entry in entries} == {"ubuntu"}
    eventually(lambda: not instance.spool())


@pytest.mark.parametrize(
    ("use_dns", "remote_host"), [("yes", "client.example.com"), ("no", REMOTE_HOST)]
)
def test_remote_host_is_a_name_only_with_use_dns(
    instance: Instance, use_dns: str, remote_host: str
) -> None:
    instance.start_sshd(f"UseDNS {use_dns}")
    instance.resolve("client.example.com", REMOTE_HOST)
    assert instance.ssh("ubuntu", "true").returncode == 0
    told = {entry.detail["remote_host"] for entry in instance.eventbridge.wait_for(2)}
    assert told == {remote_host}


class TestWait:
    """`--wait[=SECONDS]` on the PAM line."""

    NOW = "/usr/bin/python3 -IS -c 'import time; print(time.monotonic())'"

    def test_the_event_has_arrived_when_the_command_starts(self, instance: Instance) -> None:
        instance.configure_pam("--wait=10")
        instance.eventbridge.set(delay=0.5)  # else it may have arrived by then anyway
        done = instance.ssh("ubuntu", self.NOW)
        (opened, *_) = instance.eventbridge.wait_for(1)
        assert opened.detail["session"] == "opened"
        assert opened.arrived + 0.5 <= float(done.stdout)
        instance.eventbridge.wait_for(2)
        assert instance.log() == []

    def test_an_event_that_another_deliverer_sends_is_waited_for_too(
        self, instance: Instance
    ) -> None:
        with instance.session() as session:
            assert session.hook().returncode == 0
            instance.eventbridge.wait_for(1)
            assert len(instance.deliverers()) == 1
            instance.eventbridge.set(delay=0.3)
            result = session.hook(arguments=["--wait"])
            assert result.returncode == 0
            assert result.seconds >= 0.3
        assert len(instance.eventbridge.entries()) == 2

    def test_the_login_goes_on_when_the_time_is_up(self, instance: Instance) -> None:
        instance.configure_pam("--wait=0.3")
        instance.eventbridge.set(fault="hang")
        began = time.monotonic()
        done = instance.ssh("ubuntu", self.NOW)
        assert done.returncode == 0
        assert 0.3 <= float(done.stdout) - began < 0.3 + QUICK_SECONDS
        line = instance.syslog.wait_for("exit code")
        assert line.identifier in ("sshd", "sshd-session")  # the latter since OpenSSH 9.8
        assert f"{TATTLE} failed: exit code 75" in line.message
        eventually(lambda: len(instance.spool()) == 2)

    def test_an_event_that_can_never_be_sent_is_not_waited_for(self, instance: Instance) -> None:
        instance.eventbridge.set(rejections=[Rejection("ubuntu", code="MalformedDetail")])
        with instance.session() as session:
            result = session.hook(arguments=["--wait=20"])
        assert result.returncode == 65
        assert result.seconds < 10

    @pytest.mark.parametrize(
        ("argument", "seconds"),
        [("--wait", 5.0), ("--wait=", 5.0), ("--wait=0.3", 0.3), ("--wait=600", 600.0)],
    )
    def test_its_seconds(self, argument: str, seconds: float) -> None:
        assert hook.seconds_to_wait([argument]) == seconds

    @pytest.mark.parametrize(
        "typo",
        ["--wiat=3", "--wait=soon", "wait", "--wait=1 2", "--wait=-1", "--wait=601", "\udcff"],
    )
    def test_a_typo_is_logged_and_waits_for_nothing(
        self, typo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines: list[str] = []
        monkeypatch.setattr(hook, "log", lines.append)
        assert hook.seconds_to_wait([typo]) == 0
        (line,) = lines
        assert "on the PAM line" in line
        assert "--wait[=SECONDS]" in line

    @pytest.mark.parametrize("typo", ["--wiat=3", "flush"])
    def test_a_typo_in_the_pam_file_loses_no_event(self, instance: Instance, typo: str) -> None:
        instance.configure_pam(typo)
        assert instance.ssh("ubuntu", "true").returncode == 0
        instance.eventbridge.wait_for(2)
        assert typo in instance.syslog.wait_for("on the PAM line").message


def test_an_event_waits_for_no_disk_either(instance: Instance) -> None:
    instance.hook()
    instance.eventbridge.wait_for(1)
    eventually(lambda: not instance.records())
    instance.kill_deliverers()
    with instance.session() as session:
        result = session.hook(strace=["-e", "inject=fsync:delay_enter=10000000"])  # 10 s
    assert instance.eventbridge.wait_for(2, timeout=20)[-1].arrived - result.started < 10


def test_a_disk_that_hangs_does_not_multiply_deliverers(instance: Instance) -> None:
    """The standby lives, whatever its disk does: no hook starts another process, nor ends it."""
    instance.hook()
    instance.eventbridge.wait_for(1)
    instance.kill_deliverers()
    instance.eventbridge.set(fault="throttle")
    slow = ["-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1500000"]
    with instance.session() as session:
        session.hook(strace=slow)
        instance.syslog.wait_for("events wait in the spool")
        session.hook(strace=slow)
        eventually(instance.standbys)
        both = instance.deliverers() + instance.standbys()
        for _ in range(20):
            session.hook(strace=slow)
            time.sleep(0.25)
    left = instance.processes(f"{TATTLE} deliver")
    assert [one.pid for one in left] == [one.pid for one in both]
    assert instance.log_with("no heartbeat") == []
