"""What a login may leave the hook to work with: limits, signals, descriptors. The event is
accepted, or its failure is told; never a traceback, never a core."""

from __future__ import annotations

import itertools
import re

import pytest

from standins.instance import SPOOL, TATTLE, Hook, HookResult, Instance
from support import SYSTEM_PYTHON, eventually, need_root

pytestmark = [pytest.mark.root, pytest.mark.slow]

PRLIMIT = "/usr/bin/prlimit"
CAP_SYS_RESOURCE = 1 << 24  # linux/capability.h
NO_EVENT_SECONDS = 3.0
ALL_SIGNALS = "set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}"


def prepared(code: str) -> list[str]:
    """A wrapper: Python runs that code, then becomes the hook. env drops LC_CTYPE, its gift."""
    become = "os.execv('/usr/bin/env', ['env', '-u', 'LC_CTYPE', *sys.argv[1:]])"
    return [SYSTEM_PYTHON, "-ISc", f"import os, resource, signal, sys\n{code}\n{become}"]


def run(box: Instance, wrapper: list[str], *arguments: str) -> HookResult:
    result = box.hook(wrapper=wrapper, arguments=arguments, stdout=True)
    assert b"Traceback" not in result.output, result.output.decode()
    assert result.returncode >= 0, "killed, or crashed"
    assert not any("defect" in line.message for line in box.log())
    return result


@pytest.fixture
def unpacked(instance: Instance) -> None:
    """botocore is where a deliverer finds it."""
    instance.hook()
    instance.eventbridge.wait_for(1)
    eventually(lambda: instance.spool() == [])
    instance.kill_deliverers()
    instance.eventbridge.clear()


# Limits that leave Python enough to start; soft ones, which any process may lift


@pytest.mark.parametrize(
    "limit",
    [
        *("--fsize=0:", "--fsize=100:", "--cpu=1:", "--nproc=0:", "--nofile=8:"),
        *("--core=unlimited:", "--stack=262144:", "--data=30000000:", "--as=60000000:"),
        *("--memlock=0:", "--sigpending=0:"),
    ],
)
def test_the_event_arrives_under_a_users_limits(instance: Instance, limit: str) -> None:
    assert run(instance, [PRLIMIT, limit]).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    limits = instance.path(f"/proc/{deliverer.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    for name in ("cpu time", "file size", "data size", "address space"):
        assert re.search(rf"Max {name} +unlimited +unlimited ", limits), limits
    assert instance.log() == []


def test_the_deliverer_outlives_the_cpu_time_of_a_login(instance: Instance) -> None:
    instance.run(["rm", "-rf", "/var/cache/tattle", "/run/tattle"], check=True)  # more to do
    one_second = "resource.setrlimit(resource.RLIMIT_CPU, (1, resource.RLIM_INFINITY))"
    spend_most = "while sum(os.times()[:2]) < 0.7: pass"
    assert run(instance, prepared(f"{one_second}\n{spend_most}")).returncode == 0
    instance.eventbridge.wait_for(1)


@pytest.mark.parametrize("nice", [-20, 15])
def test_a_priority_is_no_obstacle(instance: Instance, nice: int) -> None:
    assert run(instance, prepared(f"os.setpriority(os.PRIO_PROCESS, 0, {nice})")).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    fields = instance.read(f"/proc/{deliverer.pid}/stat").rpartition(")")[2].split()
    assert int(fields[16]) == 10  # whatever the login has


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize(
    "limit", ["--fsize=0", "--nofile=8", "--as=60000000", "--data=30000000", "--cpu=1"]
)
def test_a_root_that_may_not_lift_limits_still_gets_the_event_out(
    instance: Instance, limit: str
) -> None:
    """As in a container without CAP_SYS_RESOURCE."""
    less = ["/usr/bin/setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    if run(instance, [*less, PRLIMIT, limit]).returncode == 0:
        assert_it_arrives_or_waits(instance, 1)


def may_lift_limits(box: Instance) -> bool:
    """Whether root has CAP_SYS_RESOURCE inside: in a container, often not."""
    found = re.search(r"CapEff:\t(\w+)", box.read("/proc/1/status"))
    assert found
    return bool(int(found[1], 16) & CAP_SYS_RESOURCE)


def arrives_or_is_logged(box: Instance, count: int) -> None:
    """Where nothing can be written and no limit lifted, the log has the event."""
    if may_lift_limits(box):
        box.eventbridge.wait_for(count)
    else:
        lost = "an event is lost: .*PAM_USER="
        eventually(lambda: sum(bool(re.match(lost, x.message)) for x in box.log()) == count)


def assert_it_arrives_or_waits(box: Instance, count: int) -> None:
    """What could not be delivered under the limits is on disk, or the log says that it is lost."""
    try:
        box.eventbridge.wait_for(count, timeout=NO_EVENT_SECONDS)
    except AssertionError:
        assert box.spool() or box.log()
        if not any("is lost" in line.message for line in box.log()):
            box.kill_deliverers()
            assert box.run([TATTLE, "flush"]).returncode == 0
            box.eventbridge.wait_for(count)


# Limits down to where Python itself can't start: then pam_exec logs the status


KILOBYTES = range(1000, 20_001, 250)
AT_ONCE = 8
PATIENCE = ["/usr/bin/timeout", "--signal=KILL", "5"]  # seconds; a hook takes a tenth of one
SPINS = -9


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("limit", ["data", "as"])
def test_from_too_little_memory_to_enough_an_event_is_accepted_or_a_status_tells(
    instance: Instance, limit: str
) -> None:
    """As `su` hands it on. (At some of the limits that are too little, Python spins as it starts:
    test_su.py has what keeps su's callers from that.)"""
    wrappers = [[*PATIENCE, PRLIMIT, f"--{limit}={number * 1024}:"] for number in KILOBYTES]
    hooks = [Hook(user=wrapper[-1], wrapper=wrapper, stdout=True) for wrapper in wrappers]
    results: list[HookResult] = []
    with instance.locked() as spool, instance.session() as session:
        for start in range(0, len(hooks), AT_ONCE):
            results += session.run(*hooks[start : start + AT_ONCE])
        records: bytes = b"".join((spool / name).read_bytes() for name in instance.spool())
    accepted = [result.returncode == 0 for result in results]
    assert accepted == [f"PAM_USER={wrapper[-1]}\0".encode() in records for wrapper in wrappers]
    enough = accepted.index(True)
    assert SPINS not in [result.returncode for result in results[enough:]]
    assert 5 < enough < 3 * len(hooks) // 4
    assert not any("defect" in line.message for line in instance.log())


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize(
    "limit",
    [
        *(f"--stack={size}:" for size in (1, 65_536, 131_072)),
        *(f"--nofile={number}:" for number in (0, 3, 4, 5, 6, 7)),
        "--cpu=0:",
    ],
)
def test_what_leaves_too_little_is_told_by_the_status(instance: Instance, limit: str) -> None:
    result = instance.hook(wrapper=[PRLIMIT, limit], stdout=True)
    if result.returncode == 0:
        instance.eventbridge.wait_for(1)
    assert b"/tattle/" not in result.output, "a traceback through our code"
    assert not any("defect" in line.message for line in instance.log())


# A full process table


FORK_FAILS = ["-e", "inject=clone,clone3,fork,vfork:error=EAGAIN"]


def test_where_fork_fails_the_event_waits_for_the_next_login(instance: Instance) -> None:
    need_root("strace")
    assert instance.hook(strace=FORK_FAILS).returncode == 0
    assert "the event waits" in instance.syslog.wait_for("can't start a deliverer").message
    assert len(instance.spool()) == 1
    instance.hook("close_session")
    states = [entry.detail["session"] for entry in instance.eventbridge.wait_for(2)]
    assert states == ["opened", "closed"]


def test_where_fork_fails_wait_does_not_wait(instance: Instance) -> None:
    need_root("strace")
    result = instance.hook(strace=FORK_FAILS, arguments=["--wait"])
    assert result.returncode == 75
    assert result.seconds < 3
    assert len(instance.spool()) == 1


# Signals


@pytest.mark.parametrize("arguments", [(), ("--wait",)])
@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_signals_ignored_or_blocked_at_start_stop_nothing(
    instance: Instance, how: str, arguments: tuple[str, ...]
) -> None:
    code = {
        "ignored": f"for s in {ALL_SIGNALS}: signal.signal(s, signal.SIG_IGN)",
        "blocked": f"signal.pthread_sigmask(signal.SIG_BLOCK, {ALL_SIGNALS})",
    }[how]
    assert run(instance, prepared(code), *arguments).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    status = instance.read(f"/proc/{deliverer.pid}/status")
    masks = {name: int(value, 16) for name, value in re.findall(r"(Sig\w+):\t(\w{16})", status)}
    assert masks["SigBlk"] == 0
    sigterm, sighup, sigchld = 1 << 14, 1 << 0, 1 << 16
    assert masks["SigIgn"] & (sigterm | sighup | sigchld) == 0
    instance.run(["kill", "-TERM", str(deliverer.pid)])
    eventually(lambda: instance.deliverers() == [])


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("action", ["SIG_DFL", "SIG_IGN"])
def test_a_file_size_of_zero_kills_nobody(instance: Instance, action: str) -> None:
    """write(2) sends SIGXFSZ, which dumps core unless ignored."""
    code = f"signal.signal(signal.SIGXFSZ, signal.{action})"
    zero = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    status = run(instance, prepared(f"{code}\n{zero}")).returncode
    assert (status == 0) == may_lift_limits(instance)
    arrives_or_is_logged(instance, 1)


def test_an_alarm_that_is_set_for_the_login_loses_nothing(instance: Instance) -> None:
    instance.imds.set(fault="hang")
    set_alarm = prepared("signal.setitimer(signal.ITIMER_REAL, 0.5)")
    result = instance.hook(wrapper=set_alarm, arguments=["--wait=3"])
    assert result.returncode in (-14, 75)
    instance.imds.set(fault=None)
    instance.eventbridge.wait_for(1)


# Descriptors, the working directory, the environment's size


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [
        *((closed, ()) for n in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), n)),
        ((0, 1, 2), ("--wait",)),
    ],
)
def test_closed_descriptors_matter_not(
    instance: Instance, closed: tuple[int, ...], arguments: tuple[str, ...]
) -> None:
    code = "\n".join(f"os.close({number})" for number in closed)
    result = instance.hook(wrapper=prepared(code), arguments=arguments)
    assert result.returncode == 0
    instance.eventbridge.wait_for(1)
    assert instance.log() == []


@pytest.mark.parametrize("faulty", ["a record can't be written", "delivery fails"])
def test_nor_do_they_where_something_is_to_be_said(instance: Instance, faulty: str) -> None:
    """The log's socket may get one of those numbers."""
    if faulty == "delivery fails":
        instance.eventbridge.set(fault="access-denied")
    else:
        instance.run(["touch", SPOOL], check=True)
    result = instance.hook(wrapper=prepared("os.closerange(0, 3)"))
    assert result.returncode == 0
    instance.syslog.wait_for({"delivery fails": "AccessDenied"}.get(faulty, "an event waits in"))


def test_many_open_descriptors_are_let_go(instance: Instance) -> None:
    code = "for n in range(500): os.set_inheritable(os.open('/etc/passwd', os.O_RDONLY), True)"
    assert run(instance, prepared(code)).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    descriptors = instance.run(["ls", "-l", f"/proc/{deliverer.pid}/fd"]).stdout
    assert "passwd" not in descriptors


WORKING_DIRECTORIES = {
    "vanished": "os.mkdir('/tmp/gone'); os.chdir('/tmp/gone'); os.rmdir('/tmp/gone')",
    "deeper than a path may be": "os.chdir('/tmp')\n"
    "for _ in range(50): os.mkdir('x' * 100); os.chdir('x' * 100)",
    "with modules in it": "os.chdir('/tmp'); open('os.py', 'w').write('raise OSError')",
}


@pytest.mark.parametrize("code", WORKING_DIRECTORIES.values(), ids=WORKING_DIRECTORIES)
def test_the_working_directory_matters_not(instance: Instance, code: str) -> None:
    assert run(instance, prepared(code)).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    assert instance.run(["readlink", f"/proc/{deliverer.pid}/cwd"]).stdout == "/\n"


@pytest.mark.parametrize(
    ("count", "size"), [(1000, 1000), (60_000, 5), (10, 120_000)], ids=["1 MB", "many", "long"]
)
def test_a_huge_environment_is_only_passed_over(instance: Instance, count: int, size: int) -> None:
    before = [(f"V{number}", "x" * size) for number in range(count)]
    result = instance.hook(before=before)
    assert result.returncode == 0
    assert result.seconds < 5  # unsetting one by one takes minutes
    (entry,) = instance.eventbridge.wait_for(1)
    assert entry.detail["username"] == "ubuntu"


def test_what_sshd_says_is_not_kept_beyond_measure(instance: Instance) -> None:
    instance.eventbridge.set(fault="refuse")
    variables = [("SSH_CONNECTION", "x" * 100_000), ("SSH_AUTH_INFO_0", "y" * 100_000)]
    instance.hook(before=variables)
    (record,) = instance.spool()
    assert instance.path(f"{SPOOL}/{record}").stat().st_size < 1000


# Real ones: pam_limits sets them for alice, sshd runs the hook under them


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize(
    "limit",
    [
        *("soft fsize 0", "hard fsize 0", "- core unlimited", "soft as 100000"),
        *("soft nofile 16", "- priority 19"),
    ],
)
def test_a_login_under_limits_of_pam_limits_is_told_from_open_to_close(
    instance: Instance, limit: str
) -> None:
    instance.write("/etc/security/limits.conf", f"alice {limit}\n")
    assert instance.ssh("alice", "echo in").stdout == "in\n"
    if limit == "hard fsize 0":
        arrives_or_is_logged(instance, 2)
        return
    told = [entry.detail for entry in instance.eventbridge.wait_for(2)]
    assert [one["username"] for one in told] == ["alice", "alice"]
    assert {one["session"] for one in told} == {"opened", "closed"}
    if "soft" in limit:
        assert instance.log() == []
