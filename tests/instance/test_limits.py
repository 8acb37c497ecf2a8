"""What a login may leave the hook to work with: limits, signals, descriptors. The event is
accepted, or its failure is reported; never a traceback, never a core."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from standins.instance import (
    SPOOL,
    SYSTEM_PYTHON,
    TATTLE,
    Hook,
    HookResult,
    Instance,
    prepared,
)
from support import cgroup, eventually, need_root
from tattle.shell import recipe

pytestmark = [pytest.mark.root, pytest.mark.slow]

LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
PRLIMIT = "/usr/bin/prlimit"
CAP_SYS_RESOURCE = 1 << 24  # linux/capability.h
UNABLE = ["/usr/bin/setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
NO_EVENT_SECONDS = 3.0
ALL_SIGNALS = "set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}"
# Limits that leave Python enough to start; soft ones, which any process may lift
SOFT = ["--core=unlimited:", "--nofile=8:", "--stack=262144:", "--nproc=0:", "--sigpending=0:"]
OF_PYTHON = ["--cpu=1:", "--data=30000000:", "--as=60000000:"]


def run(box: Instance, wrapper: list[str], *arguments: str) -> HookResult:
    result = box.hook(wrapper=wrapper, arguments=arguments, stdout=True)
    assert b"Traceback" not in result.output, result.output.decode()
    assert result.returncode >= 0, "killed, or crashed"
    assert not box.log_with("defect")
    return result


@pytest.fixture
def unpacked(instance: Instance) -> None:
    """botocore is where a deliverer finds it."""
    instance.hook()
    instance.eventbridge.wait_for(1)
    eventually(lambda: instance.spool() == [])
    instance.kill_deliverers()
    instance.eventbridge.clear()


# They are lifted at three places: where a record can't be written; for those that could keep Python
# from starting, before a deliverer is started; and by the deliverer.
@pytest.mark.parametrize("limits", [["--fsize=0:", *OF_PYTHON, *SOFT], [*OF_PYTHON, *SOFT], SOFT])
def test_the_event_arrives_under_a_users_limits(instance: Instance, limits: list[str]) -> None:
    assert run(instance, [PRLIMIT, *limits]).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    own = instance.path(f"/proc/{deliverer.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", own)
    for name in ("cpu time", "file size", "data size", "address space"):
        assert re.search(rf"Max {name} +unlimited +unlimited ", own), own
    assert instance.log() == []


@pytest.mark.parametrize("place", ["", "early"])
def test_a_slice_full_of_processes_keeps_opened_back_unless_the_lines_stand_early(
    instance: Instance, place: str
) -> None:
    """For pam_systemd and logind stands a line that puts sshd into a cgroup which is full then. In
    an attack it is so just for pam_exec, and sshd's own fork for the shell succeeds."""
    with cgroup("pids") as folder:
        script = f"#!/bin/sh\necho $PPID >{folder}/cgroup.procs\necho 1 >{folder}/pids.max\n"
        instance.write("/usr/local/bin/pam_systemd.so", script, 0o755)
        line = "session required pam_exec.so type=open_session /usr/local/bin/pam_systemd.so\n"
        instance.configure_pam(user_readenv=False, lines=line)
        added = instance.run(["/bin/sh", "-s", place], input=recipe.text("pam"))
        assert added.returncode == 0, added
        with instance.locked():
            instance.ssh("ubuntu", "true")
            eventually(lambda: not (folder / "cgroup.procs").read_text())
            assert len(instance.spool()) == (1 if place else 0)


def test_the_deliverer_outlives_the_cpu_time_of_a_login(instance: Instance) -> None:
    instance.run(["rm", "-rf", "/var/cache/tattle", "/run/tattle"], check=True)  # more to do
    one_second = "resource.setrlimit(resource.RLIMIT_CPU, (1, resource.RLIM_INFINITY))"
    spend_most = "while sum(os.times()[:2]) < 0.7: pass"
    assert run(instance, prepared(f"{one_second}\n{spend_most}")).returncode == 0
    instance.eventbridge.wait_for(1)


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("limit", ["--fsize=0", "--nofile=8", "--data=30000000"])
def test_a_root_that_may_not_lift_limits_still_gets_the_event_out(
    instance: Instance, limit: str
) -> None:
    """As in a container without CAP_SYS_RESOURCE: it arrives, waits, or the log has it."""
    if run(instance, [*UNABLE, PRLIMIT, limit]).returncode:
        return
    try:
        instance.eventbridge.wait_for(1, timeout=NO_EVENT_SECONDS)
    except AssertionError:
        assert instance.spool() or instance.log()
        if not instance.log_with("is lost"):
            instance.kill_deliverers()
            assert instance.run([TATTLE, "flush"]).returncode == 0
            instance.eventbridge.wait_for(1)


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("limit", ["--nofile=8", "--data=40000000", "--as=100000000"])
def test_limits_that_nobody_can_lift_hold_up_nobody_elses_events(
    instance: Instance, limit: str
) -> None:
    """A deliverer that could not work ends, and leaves the spool to another login's."""
    assert run(instance, [*UNABLE, PRLIMIT, limit]).returncode == 0
    eventually(lambda: not instance.processes(f"{TATTLE} deliver"))
    instance.hook(user="bob")
    instance.eventbridge.wait_for(2)
    assert "limit of" in instance.syslog.wait_for("can't be lifted").message


def arrives_or_is_logged(box: Instance, count: int) -> None:
    """Where nothing can be written and root may lift no limit (in a container, often), the log has
    the event."""
    capabilities = re.search(r"CapEff:\t(\w+)", box.read("/proc/1/status"))
    assert capabilities
    if int(capabilities[1], 16) & CAP_SYS_RESOURCE:
        box.eventbridge.wait_for(count)
    else:
        lost = "an event is lost: .*PAM_USER="
        eventually(lambda: sum(bool(re.match(lost, x.message)) for x in box.log()) == count)


# Limits down to where Python itself can't start: then pam_exec logs the status


KILOBYTES = range(1000, 28_000, 500)
AT_ONCE = 8
AT_MOST = ["/usr/bin/timeout", "--signal=KILL", "3"]  # seconds; a hook takes a tenth of one
SPINS = -9


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("limit", ["data", "as"])
def test_from_too_little_memory_to_enough_an_event_is_accepted_or_a_status_tells(
    instance: Instance, limit: str
) -> None:
    """As `su` hands it on. (At some of the limits that are too little, Python spins as it starts:
    test_su.py has what keeps su's callers from that.)"""
    wrappers = [[*AT_MOST, PRLIMIT, f"--{limit}={number * 1024}:"] for number in KILOBYTES]
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
    assert 2 < enough < 3 * len(hooks) // 4
    well = wrappers[enough + 4]  # where it begins to be enough, it is so by chance
    assert instance.hook(wrapper=well).returncode == 0
    instance.eventbridge.wait_for(sum(accepted) + 1)  # what delivers needs more memory, and has it
    assert not instance.log_with("defect")


@pytest.mark.usefixtures("unpacked")
def test_what_leaves_too_little_is_seen_by_the_status(instance: Instance) -> None:
    limits = [*(f"--stack={size}:" for size in (1, 65_536, 131_072)), "--cpu=0:"]
    limits += [f"--nofile={number}:" for number in (0, 3, 4, 5, 6, 7)]
    hooks = [Hook(user=limit, wrapper=[PRLIMIT, limit], stdout=True) for limit in limits]
    with instance.session() as session:
        results = session.run(*hooks)
    accepted = {hook.user for hook, result in zip(hooks, results) if result.returncode == 0}
    instance.eventbridge.wait_for(len(accepted))
    assert instance.arrived().keys() == accepted
    assert b"/tattle/" not in b"".join(result.output for result in results), "our traceback"
    assert not instance.log_with("defect")


# A full process table


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("--wait",), 75)])
def test_where_fork_fails_the_event_waits_for_the_next_login(
    instance: Instance, arguments: tuple[str, ...], status: int
) -> None:
    need_root("strace")
    fork_fails = ["-e", "inject=clone,clone3,fork,vfork:error=EAGAIN"]
    result = instance.hook(strace=fork_fails, arguments=arguments)
    assert result.returncode == status
    assert result.seconds < 3  # --wait does not
    assert "the event waits" in instance.syslog.wait_for("can't start a deliverer").message
    assert len(instance.spool()) == 1
    instance.hook("close_session")
    states = [entry.detail["session"] for entry in instance.eventbridge.wait_for(2)]
    assert states == ["opened", "closed"]


# Signals


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (f"for s in {ALL_SIGNALS}: signal.signal(s, signal.SIG_IGN)", ()),
        (f"signal.pthread_sigmask(signal.SIG_BLOCK, {ALL_SIGNALS})", ("--wait",)),
    ],
    ids=["ignored", "blocked"],
)
def test_signals_ignored_or_blocked_at_start_stop_nothing(
    instance: Instance, code: str, arguments: tuple[str, ...]
) -> None:
    assert run(instance, prepared(code), *arguments).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    status = instance.read(f"/proc/{deliverer.pid}/status")
    masks = {name: int(value, 16) for name, value in re.findall(r"(Sig\w+):\t(\w{16})", status)}
    sigterm, sighup, sigchld, sigio = 1 << 14, 1 << 0, 1 << 16, 1 << 28
    assert masks["SigBlk"] == sigio  # for which it waits
    assert masks["SigIgn"] & (sigterm | sighup | sigchld) == 0
    instance.run(["kill", "-TERM", str(deliverer.pid)])
    eventually(lambda: instance.deliverers() == [])


@pytest.mark.usefixtures("unpacked")
def test_a_file_size_of_zero_kills_nobody(instance: Instance) -> None:
    """write(2) sends SIGXFSZ, which dumps core unless ignored."""
    code = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"
    run(instance, prepared(f"{code}\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"))
    arrives_or_is_logged(instance, 1)


def test_an_alarm_that_is_set_for_the_login_loses_nothing(instance: Instance) -> None:
    instance.imds.set(fault="hang")
    set_alarm = prepared("signal.setitimer(signal.ITIMER_REAL, 0.3)")
    result = instance.hook(wrapper=set_alarm, arguments=["--wait=1"])
    assert result.returncode in (-14, 75)
    instance.imds.set(fault=None)
    instance.eventbridge.wait_for(1)


# Descriptors, the working directory, the environment's size


@pytest.mark.parametrize(
    ("closed", "arguments"), [((0,), ()), ((0, 1, 2), ()), ((0, 1, 2), ("--wait",))]
)
def test_closed_descriptors_change_nothing(
    instance: Instance, closed: tuple[int, ...], arguments: tuple[str, ...]
) -> None:
    code = "\n".join(f"os.close({number})" for number in closed)
    assert instance.hook(wrapper=prepared(code), arguments=arguments).returncode == 0
    instance.eventbridge.wait_for(1)
    assert instance.log() == []


@pytest.mark.parametrize("message", ["AccessDenied", "an event waits in"])
def test_nor_do_they_where_something_is_to_be_said(instance: Instance, message: str) -> None:
    """The log's socket may get one of those numbers."""
    if message == "AccessDenied":
        instance.eventbridge.set(fault="access-denied")
    else:
        instance.run(["touch", SPOOL], check=True)
    assert instance.hook(wrapper=prepared("os.closerange(0, 3)")).returncode == 0
    instance.syslog.wait_for(message)


@pytest.mark.parametrize(
    "code",
    [
        "os.mkdir('/tmp/gone'); os.chdir('/tmp/gone'); os.rmdir('/tmp/gone')",
        "os.chdir('/tmp')\nfor _ in range(50): os.mkdir('x' * 100); os.chdir('x' * 100)",
        "os.chdir('/tmp'); open('os.py', 'w').write('raise OSError')",
    ],
    ids=["vanished", "deeper than a path may be", "with modules in it"],
)
def test_open_files_and_the_working_directory_are_let_go(instance: Instance, code: str) -> None:
    code += "\nfor n in range(500): os.set_inheritable(os.open('/etc/passwd', os.O_RDONLY), True)"
    code += "\nos.dup2(3, 2000)  # above the limit that a deliverer sets for itself"
    assert run(instance, prepared(code)).returncode == 0
    instance.eventbridge.wait_for(1)
    (deliverer,) = instance.deliverers()
    assert instance.run(["readlink", f"/proc/{deliverer.pid}/cwd"]).stdout == "/\n"
    assert "passwd" not in instance.run(["ls", "-l", f"/proc/{deliverer.pid}/fd"]).stdout


@pytest.mark.parametrize(("count", "size"), [(60_000, 5), (10, 120_000)], ids=["many", "long"])
def test_a_huge_environment_is_only_passed_over(instance: Instance, count: int, size: int) -> None:
    result = instance.hook(before=[(f"V{number}", "x" * size) for number in range(count)])
    assert result.returncode == 0
    assert result.seconds < 5  # unsetting one by one takes minutes
    (entry,) = instance.eventbridge.wait_for(1)
    assert entry.detail["username"] == "ubuntu"


def test_in_memory_what_sshd_says_is_not_kept_beyond_measure(instance: Instance) -> None:
    instance.eventbridge.set(fault="refuse")
    variables = [("SSH_CONNECTION", "x" * 100_000), ("SSH_AUTH_INFO_0", "y" * 100_000)]
    instance.run(["mount", "-o", "remount,ro", "/var/spool"], check=True)
    try:
        instance.hook(before=variables)
    finally:
        instance.run(["mount", "-o", "remount,rw", "/var/spool"], check=True)
    (record,) = instance.path("/run/tattle-spool").glob("[0-9]*")
    assert record.stat().st_size < 1000


# Real ones: pam_limits sets them for alice, sshd runs the hook under them


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("limit", ["hard fsize 0", "soft as 100000", "soft nofile 16"])
def test_a_login_under_limits_of_pam_limits_is_reported_from_open_to_close(
    instance: Instance, limit: str
) -> None:
    instance.write("/etc/security/limits.conf", f"alice {limit}\n")
    assert instance.ssh("alice", "echo in").stdout == "in\n"
    if limit == "hard fsize 0":
        arrives_or_is_logged(instance, 2)
        return
    details = [entry.detail for entry in instance.eventbridge.wait_for(2)]
    assert [one["username"] for one in details] == ["alice", "alice"]
    assert {one["session"] for one in details} == {"opened", "closed"}
    assert instance.log() == []


# What a user may take from everybody

PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
REUSE = "/proc/sys/net/ipv4/tcp_tw_reuse"  # to a loopback, of ports of connections that have ended
HOLD = (
    "import contextlib, socket, sys\n"
    "held = [socket.socket() for _ in range(int(sys.argv[1]), int(sys.argv[2]) + 1)]\n"
    "for port, one in enumerate(held, int(sys.argv[1])):\n"
    "    with contextlib.suppress(OSError):  # a connection that has just ended holds it\n"
    "        one.bind(('', port))\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)


@contextmanager
def held(box: Instance, first: int, last: int, user: str) -> Iterator[None]:
    """A user holds these ports while entered."""
    command = [SYSTEM_PYTHON, "-ISc", HOLD, str(first), str(last)]
    pipe = subprocess.PIPE
    with box.popen(command, user=user, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


@pytest.fixture
def few_ports(instance: Instance) -> Iterator[Instance]:
    """The instance, where a connection gets one of ten ports by itself. (Inside, /proc/sys can't be
    written. The file is the network namespace's.)"""

    def write(file: str, value: str) -> None:
        inside = ["nsenter", f"--net={instance.network}", "/bin/sh", "-c"]
        subprocess.run([*inside, f"echo {value} >{file}"], check=True)

    instance.kill_deliverers()  # one that stays for the next event has a connection
    default = {file: instance.read(file).strip() for file in (PORTS, REUSE)}
    write(PORTS, "40000 40009")
    write(REUSE, "0")
    try:
        yield instance
    finally:
        for file, value in default.items():
            write(file, value)


def test_a_user_who_holds_every_port_holds_up_no_event(few_ports: Instance) -> None:
    with held(few_ports, 40000, 40009, "alice"):
        assert few_ports.hook().returncode == 0
        few_ports.eventbridge.wait_for(1)
        assert few_ports.run([TATTLE], env=LOGIN).returncode == 0
    assert few_ports.log_with("no port above 1023 is free: connected from port ")


def test_where_none_below_is_free_either_the_want_of_ports_is_named(few_ports: Instance) -> None:
    with held(few_ports, 40000, 40009, "alice"), held(few_ports, 600, 1023, "root"):
        done = few_ports.run([TATTLE], env=LOGIN)
    assert done.returncode == 69
    assert "can't be reached: no local port is free → a user holds all ports" in done.stderr
