"""A deliverer shares nothing with the login that started it, so nothing that a user does to what is
theirs reaches it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from standins.instance import SPOOL, TATTLE, Instance, prepared
from standins.strace import strace
from support import changed, eventually, need, need_root, repacked

pytestmark = pytest.mark.root

CGROUPS = Path("/sys/fs/cgroup")
NAME = f"tattle-test-{os.getpid()}"
# Soft ones, which pam_limits sets for alice: enough for the hook
LIMITS = "alice soft data 40000\nalice soft as 200000\nalice soft fsize 100\nalice soft nofile 64\n"


def hierarchies() -> list[Path]:
    """Those that logind would put a session into: one, or two in a hybrid."""
    places = [CGROUPS, CGROUPS / "unified", CGROUPS / "systemd"]
    real = [p for p in places if (p / "cgroup.controllers").exists() or (p / "tasks").exists()]
    return [place for place in real if os.access(place / "cgroup.procs", os.W_OK)]


@contextmanager
def sessions_cgroup(box: Instance) -> Iterator[list[Path]]:
    """What stands for logind's scope of a session: sshd's sessions are in it while entered."""
    made = [place / NAME for place in hierarchies()]
    need(made, "needs cgroups that root may write to")
    for cgroup in made:
        cgroup.mkdir()
        join = f"echo {box._sshd_pid} >{cgroup}/cgroup.procs"
        box.run(["/bin/sh", "-c", join], check=True)
    try:
        yield made
    finally:
        while members := [pid for cgroup in made for pid in processes(box, cgroup)]:
            signal(box, "KILL", members)
        for cgroup in made:
            cgroup.rmdir()


def processes(box: Instance, cgroup: Path) -> list[str]:
    """Their ids inside; 0 is one outside."""
    found = box.run(["cat", f"{cgroup}/cgroup.procs"], check=True).stdout.split()
    return [pid for pid in found if pid != "0"]


def signal(box: Instance, name: str, pids: list[str]) -> None:
    box.run(["kill", f"-{name}", *pids])


@pytest.fixture
def box(artifact: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        box.write("/etc/security/limits.conf", LIMITS)
        yield box


def test_nothing_of_the_login_is_the_deliverers(box: Instance) -> None:
    box.eventbridge.set(fault="hang")
    there = sorted(os.listdir(CGROUPS))
    with sessions_cgroup(box), box.logged_in("alice"):
        eventually(box.eventbridge.connection_count)
        (deliverer,) = box.deliverers()
        process = f"/proc/{deliverer.pid}"
        assert box.read(f"{process}/environ") == ""
        assert NAME in box.read(f"/proc/{box._sshd_pid}/cgroup")
        assert NAME not in box.read(f"{process}/cgroup")

        look = f"cd {process}/fd && for fd in *; do echo $fd $(readlink $fd); done"
        found = box.run(["sh", "-c", look]).stdout.splitlines()
        files = dict(line.split(maxsplit=1) for line in found)
        standard = [files.pop(number) for number in "012"]
        assert standard == ["/dev/null"] * 3
        own = rf"socket:.*|({SPOOL}|/run/tattle-spool)(/.deliverer)?"
        assert [file for file in files.values() if not re.fullmatch(own, file)] == []

        fields = box.read(f"{process}/stat").rpartition(")")[2].split()
        assert int(fields[3]) == deliverer.pid, "a session of its own"
        assert box.run(["readlink", f"{process}/cwd"]).stdout == "/\n"
        status = box.read(f"{process}/status")
        assert re.search(r"^Umask:\s+0077$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t0\t0\t0\t0$", status, re.MULTILINE)
        limits = box.read(f"{process}/limits")
        for name in ("cpu time", "file size", "data size", "address space"):
            assert re.search(rf"Max {name} +unlimited +", limits), limits
    assert sorted(os.listdir(CGROUPS)) == there  # in a hybrid hierarchy, a folder as any other


def test_what_stops_or_kills_all_of_a_session_stops_no_delivery(box: Instance) -> None:
    """Two logins' events are accepted; then their user sends signals to all that is theirs."""
    box.eventbridge.set(fault="refuse")
    with sessions_cgroup(box) as cgroups:
        with box.logged_in("alice"), box.logged_in("alice"):
            eventually(lambda: len(box.spool()) == 2)
            eventually(box.deliverers)
            eventually(lambda: all(NAME not in one for one in cgroups_of_deliverers(box)))
            for name in ("STOP", "KILL"):
                for cgroup in cgroups:
                    signal(box, name, processes(box, cgroup))
                assert box.deliverers()
                assert {one.state for one in box.deliverers()} <= {"R", "S", "D"}
        box.eventbridge.set(fault=None)
        entries = box.eventbridge.wait_for(2, timeout=40)
    assert [entry.detail["session"] for entry in entries] == ["opened", "opened"]


def cgroups_of_deliverers(box: Instance) -> list[str]:
    found = [*box.deliverers(), *box.standbys()]
    return [box.read(f"/proc/{process.pid}/cgroup") for process in found]


# What su and sudo hand on of their caller's: code for a process that becomes the hook, and what the
# kernel says of the deliverer.
YEARS = 9 * 10**18  # nanoseconds
SLACK = f"ctypes.CDLL(None).prctl(29, ctypes.c_ulong({YEARS}), 0, 0, 0)"
SCHEDULING = {
    SLACK: "cat /proc/$1/timerslack_ns",
    "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))": "chrt --pid $1",
    "os.sched_setaffinity(0, {0})": "taskset --pid $1",
    "os.nice(19)": "ps -o ni= -p $1",
    "open('/proc/self/oom_score_adj', 'w').write('1000')": "cat /proc/$1/oom_score_adj",
    "subprocess.run(['/usr/bin/ionice', '-c', '3', '-p', str(os.getpid())])": "ionice -p $1",
}


def deliverers_scheduling(box: Instance) -> str:
    (deliverer,) = box.deliverers()
    pid = str(deliverer.pid)
    look = "; ".join(SCHEDULING.values())
    return box.run(["/bin/sh", "-c", look, "-", pid], check=True).stdout.replace(pid, "PID")


def test_nothing_of_a_callers_scheduling_is_the_deliverers(instance: Instance) -> None:
    instance.hook()
    instance.eventbridge.wait_for(1)  # from then on the deliverer stays the same process
    eventually(lambda: "prio 7" in deliverers_scheduling(instance))  # ionice, which it starts
    usual = deliverers_scheduling(instance)
    instance.kill_deliverers()
    assert instance.hook(wrapper=prepared("\n".join(SCHEDULING))).returncode == 0
    instance.eventbridge.wait_for(2)
    eventually(lambda: deliverers_scheduling(instance) == usual)


@pytest.mark.parametrize("arguments", [(), ("--wait=20",)])
def test_a_timer_slack_of_years_holds_up_nobody(
    instance: Instance, arguments: tuple[str, ...]
) -> None:
    for count in (1, 2):
        assert instance.hook(wrapper=prepared(SLACK), arguments=arguments).returncode == 0
        instance.eventbridge.wait_for(count)
    instance.hook(user="somebody else")
    instance.eventbridge.wait_for(3)


def test_a_terminal_ends_or_stops_no_hook(instance: Instance) -> None:
    """^C, ^\\, ^Z and a hang-up reach what su runs, whatever its user ids."""
    instance.eventbridge.set(fault="hang")
    with ThreadPoolExecutor() as pool:
        hook = pool.submit(instance.hook, arguments=("--wait=3",))
        eventually(instance.spool)
        *_, process = instance.processes(f"{TATTLE} --wait=3")
        for name in ("INT", "QUIT", "TSTP", "HUP"):
            signal(instance, name, [str(process.pid)])
        assert hook.result().returncode == os.EX_TEMPFAIL, "the time was up"


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_what_ends_a_session_does_not_end_the_hook_of_its_end(
    instance: Instance, name: str
) -> None:
    """systemd sends these to all of a session's processes, also to one that has just been started:
    here to Python when it looks for its modules."""
    need_root("strace")
    starting = ["-e", f"inject=?readlink,readlinkat:signal={name}:when=1"]
    assert instance.hook("close_session", wrapper=strace(starting)).returncode == 0
    instance.eventbridge.wait_for(1)


# A descriptor whose close() takes an hour: what was written to the connection is not read. (A FUSE
# file system of the user's can do worse, where no signal helps.)
HANGS_IN_CLOSE = """
import socket, struct, time
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
client.setblocking(False)
try:
    while client.send(bytes(65536)):
        pass
except BlockingIOError:
    pass
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
os.dup2(client.fileno(), 2000)
if os.fork() == 0:
    os.close(2000)
    os.set_inheritable(peer.fileno(), True)
    os.execv("/bin/sleep", ["sleep", "60"])
"""


def test_what_the_login_had_open_is_not_waited_for(instance: Instance) -> None:
    assert instance.hook(wrapper=prepared(HANGS_IN_CLOSE)).returncode == 0
    instance.eventbridge.wait_for(1)
    assert "2000" not in os.listdir(instance.path(f"/proc/{instance.deliverers()[0].pid}/fd"))


def test_who_hangs_before_it_has_a_lock_is_ended(artifact: Path, tmp_path: Path) -> None:
    """Here while it unpacks: somebody else holds the cache."""
    need_root(*Instance.TOOLS)
    changed(artifact, tmp_path / "tattle", "^LOCK_SECONDS = .*$", "LOCK_SECONDS = 2.0")
    with Instance(tmp_path / "tattle") as box, box.session() as session:
        cache = box.path("/var/cache/tattle")
        cache.mkdir(0o700)
        fd = os.open(cache, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert session.hook().returncode == 0
        eventually(lambda: box.processes(f"{TATTLE} deliver"))
        eventually(lambda: not box.processes(f"{TATTLE} deliver"))
        os.close(fd)
        box.install(artifact)  # which has the time to unpack
        assert session.hook().returncode == 0
        box.eventbridge.wait_for(2, timeout=30)


def held(artifact: Path, to: Path) -> Path:
    """Write an artifact whose deliverers do nothing but say that they are there: /tmp/held."""

    def hold(name: str, content: bytes) -> bytes:
        code = b"import sys, time\nif sys.argv[2:3] == ['deliver']:"
        code += b" open('/tmp/held', 'w').close(); time.sleep(600)\n"
        return code * (name == "__main__.py") + content

    repacked(artifact, to, hold)
    return to


def test_in_a_cgroup_of_a_users_own_no_deliverer_starts(artifact: Path, tmp_path: Path) -> None:
    """They could freeze it before its first line."""
    need_root(*Instance.TOOLS)
    with Instance(held(artifact, tmp_path / "held")) as box, sessions_cgroup(box) as cgroups:
        own = [cgroup / "user@6002.service" for cgroup in cgroups]
        for cgroup in own:
            cgroup.mkdir()
        join = "".join(f"open('{cgroup}/cgroup.procs', 'w').write('0')\n" for cgroup in own)
        assert box.hook(wrapper=prepared(join)).returncode == 0
        eventually(box.path("/tmp/held").exists)
        (deliverer,) = box.processes(f"{TATTLE} deliver")
        assert NAME not in box.read(f"/proc/{deliverer.pid}/cgroup")
        for cgroup in own:
            cgroup.rmdir()


@pytest.mark.slow
def test_one_that_is_stopped_before_it_could_leave_is_not_waited_for(
    artifact: Path, tmp_path: Path
) -> None:
    """The user was quicker: what the hook started is still theirs. The next hook starts another."""
    need_root(*Instance.TOOLS)
    with Instance(held(artifact, tmp_path / "slow")) as box, box.session() as session:
        assert session.hook(user="first").returncode == 0
        eventually(box.path("/tmp/held").exists)
        (stuck,) = box.processes(f"{TATTLE} deliver")
        box.run(["kill", "-STOP", str(stuck.pid)], check=True)
        box.install(artifact)
        assert session.hook(user="second").returncode == 0
        users = [entry.detail["username"] for entry in box.eventbridge.wait_for(2, timeout=30)]
        assert users == ["first", "second"]
