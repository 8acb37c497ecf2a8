"""The throwaway instance with systemd as its first process, and what only systemd brings: sessions
that their owner may stop or that end with the logout, sshd by socket activation, the units."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

from standins.instance import HOSTNAME, REMOTE_HOST, SPOOL, USERS, Instance
from support import ROOT, eventually
from tools.distros.scenarios import (
    GIVE_UP_AFTER_SECONDS,
    Skipped,
    believe_sshd,
    complaints,
    only_warnings,
    pair,
    succeeds,
    until,
)

BOOT_SECONDS = 60  # a failure, not a limit that is tested
POWEROFF_SECONDS = 60  # the same
STOP = "loginctl kill-session $XDG_SESSION_ID --signal=STOP"
LOGOUTS = 3  # of which a deliverer must survive each: it is a race
KILL_CONF = "/etc/systemd/logind.conf.d/kill.conf"
UNITS = "/etc/systemd/system"
# The machine is left alone: no module can be loaded in there, and the root of systemd's cgroups is
# a cgroup of the instance's own.
INIT = """\
set -eu
mount -t sysfs -o ro sysfs /sys
asset_tag=/sys/class/dmi/id/board_asset_tag
[ ! -e $asset_tag ] || mount --bind /run/cloud-init/.instance-id $asset_tag
exec unshare --cgroup /bin/sh -euc '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    dropped=-sys_module,-sys_time,-syslog,-sys_boot
    exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        setpriv --bounding-set=$dropped --inh-caps=$dropped /lib/systemd/systemd
'
"""


@contextmanager
def booted(artifact: Path, root: Path, furnish: Callable[[Instance], None]) -> Iterator[Instance]:
    """An instance in which systemd has taken over from the first process. `furnish` is what its
    disk gets before that."""
    with delegated_cgroup() as cgroup, Instance(artifact, root=root) as box:
        furnish(box)
        box.stop_sshd()
        box.write("/etc/hostname", f"{HOSTNAME}\n")
        box.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        box.write("/run/init", INIT)
        (cgroup / "cgroup.procs").write_text(str(box.pid))
        os.kill(box.pid, signal.SIGUSR1)
        try:
            eventually(lambda: box.read("/proc/1/comm") == "systemd\n")
            eventually(lambda: box.path("/run/systemd/private").exists(), BOOT_SECONDS)
            told = box.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
        except AssertionError:
            raise Skipped("systemd does not start here") from None
        if told.stdout.strip() != "running":
            failed = box.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
            units = ", ".join(line.split()[0] for line in failed.splitlines())
            raise Skipped(f"systemd is {told.stdout.strip()}: {units or told.stderr.strip()}")
        believe_sshd(box)
        yield box


@contextmanager
def delegated_cgroup() -> Iterator[Path]:
    """A cgroup (version 2) beside this process's own, removed with all that is in it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folders = [mount[1] for mount in mounts if mount[2] == "cgroup2"]
    if not folders:
        raise Skipped("no cgroup2 is mounted on this machine")
    own = next(
        line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
    )
    made = Path(folders[0] + own, f"tattle-{os.getpid()}-{time.monotonic_ns()}")
    # Like the machine's root cgroup, and unlike others, one that has no controllers takes processes
    # beside its children: tattle's deliverer goes there. `made` hands none on.
    inner = made / "instance"
    try:
        inner.mkdir(parents=True)
    except OSError as error:
        raise Skipped(f"no cgroup can be made: {error}") from None
    try:
        yield inner
    finally:
        for folder, _, _ in os.walk(made, topdown=False):
            eventually(functools.partial(_removed, folder))  # once its last process has ended


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def tidy(box: Instance) -> None:
    """As Instance.reset(), which would kill systemd's own services, too."""
    for user in USERS:  # their sessions, stopped ones too
        box.run(["loginctl", "kill-user", "--signal=KILL", user])
    until(lambda: not box.run(["loginctl", "--no-legend"]).stdout, "sessions do not end")
    box.kill_deliverers()
    box.imds.reset()
    box.eventbridge.reset()
    box.run(["rm", "-rf", SPOOL])
    box.run(["systemctl", "reset-failed"])
    succeeds(box.run(["systemctl", "restart", "ssh.service"]))
    box.syslog.clear()


def stop_signal(box: Instance) -> None:
    """A user sends every process of their session SIGSTOP while a deliverer that their login
    started is at work: everybody's events arrive all the same."""
    box.eventbridge.set(fault="throttle")
    command = f"read go; {STOP}; sleep 60"
    ssh = box.ssh_command("ssh", "alice@127.0.0.1", command, user="alice", source=REMOTE_HOST)
    with box.popen(ssh, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as session:
        try:
            box.eventbridge.wait_for_calls(1, GIVE_UP_AFTER_SECONDS)
            assert session.stdin
            session.stdin.write("go\n")
            session.stdin.flush()
            shell = f"-c {command}"
            until(lambda: "T" in states(box, shell), "logind does not stop the session")
            box.eventbridge.set(fault=None)
            succeeds(box.ssh("ubuntu", "true"))
            try:
                told = [
                    entry.detail for entry in box.eventbridge.wait_for(3, GIVE_UP_AFTER_SECONDS)
                ]
            except AssertionError as error:
                stopped = [one for one in box.deliverers() if one.state == "T"]
                raise AssertionError(
                    "the deliverer is stopped, and with it everybody's events" if stopped else error
                ) from error
        finally:
            session.kill()
    assert [(one["username"], one["session"]) for one in told] == [
        ("alice", "opened"),
        ("ubuntu", "opened"),
        ("ubuntu", "closed"),
    ]


def states(box: Instance, command: str) -> list[str]:
    return [process.state for process in box.processes(command)]


def kill_user_processes(box: Instance) -> None:
    """Where logind ends all of a session's processes at logout, those that deliver are spared: the
    one that the login started, and the one that the logout itself starts."""
    box.write(KILL_CONF, "[Login]\nKillUserProcesses=yes\n")
    succeeds(box.run(["systemctl", "restart", "systemd-logind.service"]))
    try:
        box.eventbridge.set(fault="throttle")
        succeeds(box.ssh("alice", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & sleep 1"))
        until(
            lambda: not box.processes("sleep 1000"), "logind does not end the session's processes"
        )
        time.sleep(0.5)  # all were sent the signal at once, some end later
        at_work = box.deliverers()
        box.eventbridge.set(fault=None)
        assert at_work, "the login's deliverer is killed: both events wait for the next login"
        pair(box, quietly=False)
        for _ in range(LOGOUTS):
            tidy(box)
            logout_without_deliverer(box)
    finally:
        box.path(KILL_CONF).unlink()
        succeeds(box.run(["systemctl", "restart", "systemd-logind.service"]))


def logout_without_deliverer(box: Instance) -> None:
    """Log out when nobody delivers any more."""
    ssh = box.ssh_command("ssh", "alice@127.0.0.1", "read go", user="alice", source=REMOTE_HOST)
    with box.popen(ssh, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as session:
        box.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
        until(lambda: not box.spool(), "what arrived stays in the spool")
        box.kill_deliverers()
        session.communicate("go\n")
    try:
        pair(box)
    except AssertionError:
        left = [name for name in box.spool() if name[0].isdigit()]
        assert box.deliverers() or not left, (
            "the logout's deliverer is killed: `closed` waits for the next login"
        )
        raise


def socket_activation(box: Instance) -> None:
    """sshd by socket activation, before anybody came: nothing is wrong, and it works."""
    succeeds(box.run(["systemctl", "stop", "ssh.service"]))
    # bullseye has a service for each connection, ssh@.service; later releases start ssh.service.
    succeeds(box.run(["systemctl", "start", "ssh.socket"]))
    try:
        if box.path("/run/sshd").exists():
            box.path("/run/sshd").rmdir()  # left by the first sshd, as it is not after a boot
        bad = complaints(box)
        succeeds(box.ssh("alice", "true"))
        pair(box)
    finally:
        box.run(["systemctl", "stop", "ssh.socket", "ssh.service"])
    only_warnings(bad)


NAMES = (
    *("tattle.timer", "tattle.service", "tattle-shutdown.service"),
    *("tattle-check.timer", "tattle-check.service"),
)
QUICK = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\nRandomizedDelaySec=0\nAccuracySec=100ms\n"


def install_units(box: Instance) -> list[str]:
    """Put the units where their recipe says; their paths."""
    paths = []
    for name in NAMES:
        paths.append(f"{UNITS}/{name}")
        box.write(paths[-1], (ROOT / "src/tattle/recipes" / name).read_text("utf-8"))
    return paths


def units(box: Instance) -> None:
    """What waits in the spool is delivered by the recipe's timer, without any login."""
    install_units(box)
    box.write(f"{UNITS}/tattle.timer.d/quick.conf", QUICK)  # five minutes are not waited for here
    succeeds(box.run(["systemctl", "daemon-reload"]))
    try:
        with box.locked():
            assert box.hook().returncode == 0
        succeeds(box.run(["systemctl", "enable", "--now", "tattle.timer"]))
        log = ["journalctl", "--unit=tattle.service", "--output=cat"]
        try:
            box.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
        except AssertionError as error:
            told = box.run(log).stdout.strip()
            raise AssertionError(f"the service delivers nothing: {told}") from error
        (entry,) = box.eventbridge.entries()
        assert entry.detail["session"] == "opened"
        succeeds(box.run(["systemctl", "disable", "--now", "tattle.timer"]))
        active = ["systemctl", "show", "--value", "-p", "ActiveState", "tattle.service"]
        ended = "the service does not end"
        until(lambda: succeeds(box.run(active)).strip() == "inactive", ended)
        assert box.spool() == []
        result = ["systemctl", "show", "--value", "-p", "Result", "tattle.service"]
        assert succeeds(box.run(result)) == "success\n"
    finally:
        box.run(["systemctl", "disable", "--now", "tattle.timer"])


def heartbeat(box: Instance) -> None:
    """The recipe's other timer sends what silence.yaml listens for."""
    install_units(box)
    box.write(f"{UNITS}/tattle-check.timer.d/quick.conf", QUICK)
    succeeds(box.run(["systemctl", "daemon-reload"]))
    try:
        succeeds(box.run(["systemctl", "enable", "--now", "tattle-check.timer"]))
        (entry, *_) = box.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
        assert entry.raw["DetailType"] == "tattle check"
    finally:
        box.run(["systemctl", "disable", "--now", "tattle-check.timer"])


def poweroff(box: Instance) -> None:
    """The logouts that a shutdown makes are delivered before it takes the network. The last of all:
    it ends the instance."""
    install_units(box)
    succeeds(box.run(["systemctl", "daemon-reload"]))
    succeeds(box.run(["systemctl", "enable", "--now", "tattle-shutdown.service"]))
    ssh = box.ssh_command("ssh", "alice@127.0.0.1", "read go", user="alice", source=REMOTE_HOST)
    with box.popen(ssh, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as session:
        try:
            box.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
            box.eventbridge.set(delay=1)
            box.run(["systemctl", "poweroff"])
            opened, closed = box.eventbridge.wait_for(2, POWEROFF_SECONDS)
        finally:
            session.kill()
    assert (opened.detail["session"], closed.detail["session"]) == ("opened", "closed")


def verify(box: Instance) -> None:
    """This release's systemd knows every setting of the units."""
    paths = install_units(box)
    inside = ["systemd-run", "--quiet", "--pipe", "--wait"]  # else in another cgroup than systemd's
    done = box.run([*inside, "systemd-analyze", "verify", "--man=no", *paths])
    told = [line for line in done.stderr.splitlines() if "tattle" in line]
    assert (done.returncode, told) == (0, []), f"{done.returncode} {done.stderr}"


SCENARIOS: dict[str, Callable[[Instance], None]] = {
    "kill-session STOP": stop_signal,
    "KillUserProcesses": kill_user_processes,
    "socket activation": socket_activation,
    "units": units,
    "heartbeat": heartbeat,
    "systemd-analyze verify": verify,
    "poweroff": poweroff,
}
