"""The throwaway instance is as a real one where tests rely on it, and the machine is left alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from standins.instance import (
    BOOT_ID,
    HOSTNAME,
    INSTANCE_ID,
    INSTANCE_ID_FILE,
    REMOTE_HOST,
    Instance,
)
from support import ROOT, eventually, need_root

pytestmark = pytest.mark.root

LOGGING_HOOK = r"""#!/bin/sh
[ "$1" != background ] || sleep 1000 &
line="uid=$(id -u) parent=$PPID $(tr '\0\n' ' ~' </proc/$$/environ)"
printf '%s\n' "$line" >>/tmp/hook
"""

# A directory that is a mount, and one that is none, each with all that the machine has.
CHROOT_ON_A_MOUNT = 'mount --rbind / "$1"'
CHROOT = """\
mount -t tmpfs tmpfs "$1/.."
mkdir "$1"
for path in /*; do
    if [ -h "$path" ]; then cp -a "$path" "$1"; continue; fi
    mkdir "$1$path"
    mount --rbind "$path" "$1$path"
done
"""
# With a /run of its own around it, where sshd would start. Prints what sshd leaves there.
IN_A_CHROOT = """\
mount -t tmpfs tmpfs /run
mkdir /run/sshd
{}
root=$1
shift
chroot "$root" "$@"
find /run -name 'sshd?*'
"""
WITHOUT_PRIVILEGES = 'shift; setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"'


# Another process has the id that the instance's first process had.
ID_USED_AGAIN = """\
box.run(["kill", "-KILL", "-1"])
os.kill(box.pid, 9)
while os.path.exists(f"/proc/{box.pid}"): pass
open("/proc/sys/kernel/ns_last_pid", "w").write(str(box.pid - 1))
assert subprocess.Popen(["sleep", "60"]).pid == box.pid
print(box.run(["echo", "done to the machine"]).stdout)
"""


def start_instance(script: str, tmp_path: Path, then: str = "pass") -> tuple[str, list[str]]:
    """Run a script that starts one instance, in a mount namespace; its output and errors."""
    need_root(*Instance.TOOLS)
    code = (
        "import os, subprocess, sys\nsys.path.insert(0, sys.argv[1])\n"
        f"from standins.instance import Instance\nwith Instance() as box:\n{indent(then, ' ')}\n"
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", script, "-", str(tmp_path / "root")),
            *(sys.executable, "-c", code, str(ROOT / "tests")),
        ],
        capture_output=True,
        text=True,
    )
    return done.stdout, done.stderr.splitlines()


@pytest.fixture(scope="module")
def made() -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    with Instance(LOGGING_HOOK) as box:
        yield box


@pytest.fixture
def box(made: Instance) -> Instance:
    """An instance whose hook is a script that logs who it is and what it was given."""
    made.reset()
    return made


def hook_runs(box: Instance, count: int) -> list[str]:
    """The script's lines, once there are that many: sshd closes a session after its client left."""
    log = box.path("/tmp/hook")
    eventually(lambda: log.exists() and len(log.read_bytes().splitlines()) >= count)
    return box.read("/tmp/hook").splitlines()


def test_the_hook_gets_of_the_stand_in_what_it_gets_of_pam_exec(box: Instance) -> None:
    login = box.ssh("ubuntu", "id -un; echo $SSH_CONNECTION; hostname")
    there = rf"ubuntu\n{REMOTE_HOST} \d+ 127\.0\.0\.1 22\n{HOSTNAME}\n"
    assert re.fullmatch(there, login.stdout)
    hook_runs(box, 2)
    with box.session() as session:
        before = [("A", "1"), ("PAM_USER", "root"), ("A", b"\xff")]
        session.hook("open_session", before=before)
        session.hook("close_session", user="bob", rhost=None, ruser="rob")
    opened, closed, as_opened, as_closed = hook_runs(box, 4)
    items = f"PAM_SERVICE=sshd PAM_USER=ubuntu PAM_TTY=ssh PAM_RHOST={REMOTE_HOST} "
    assert all(line.startswith("uid=0 ") for line in (opened, closed, as_opened, as_closed))
    assert opened.endswith(f" {items}PAM_TYPE=open_session ")
    assert closed.endswith(f" {items}PAM_TYPE=close_session ")
    assert as_opened.endswith(f" A=1 PAM_USER=root A=\udcff {items}PAM_TYPE=open_session ")
    items = "PAM_SERVICE=sshd PAM_USER=bob PAM_TTY=ssh PAM_RUSER=rob "
    assert as_closed.endswith(f" {items}PAM_TYPE=close_session ")
    for first, second in ((opened, closed), (as_opened, as_closed)):
        assert first.split()[1] == second.split()[1], "one parent at both"


def test_the_machine_is_left_alone(box: Instance) -> None:
    for folder in ("/etc", "/root", "/home", "/usr/local/bin", "/var/spool", "/var/cache", "/tmp"):
        box.write(f"{folder}/tattle-was-here", "")
        assert not Path(folder, "tattle-was-here").exists()
    assert box.run(["touch", "/usr/bin/tattle-was-here"]).returncode != 0
    names = [line.partition("=")[0] for line in box.run(["env"]).stdout.splitlines()]
    assert names == ["PATH", "LANG", "HOME"]
    assert box.run(["hostname"]).stdout == f"{HOSTNAME}\n" != os.uname().nodename
    for path in (INSTANCE_ID_FILE, "/sys/class/dmi/id/board_asset_tag"):
        file = box.path(path)  # the machine may be an EC2 instance, or have no firmware to ask
        assert not file.exists() or file.read_text() == f"{INSTANCE_ID}\n"
    assert "Read-only" in box.run(["chmod", "666", "/dev/null"]).stderr
    assert "Read-only" in box.run(["touch", "/proc/sys/kernel/core_pattern"]).stderr


def test_a_file_system_of_its_own_is_read_only_too(tmp_path: Path) -> None:
    script = """\
for folder in /srv '/srv/a\\b c'; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
shift
"$@"
"""
    touch = r"for file in '/srv/x', '/srv/a\\b c/x': print(box.run(['touch', file]).stderr)"
    output, errors = start_instance(script, tmp_path, touch)
    assert (output.count("Read-only file system"), errors) == (2, []), output


def test_what_is_done_to_it_is_not_done_to_who_has_its_id_now(tmp_path: Path) -> None:
    script = 'shift; exec unshare --pid --fork --mount-proc --kill-child "$@"'
    output, errors = start_instance(script, tmp_path, ID_USED_AGAIN)
    assert (output, errors) == ("\n", [])


@pytest.mark.parametrize("made", [CHROOT_ON_A_MOUNT, CHROOT], ids=["on a mount", "on none"])
def test_in_a_chroot_it_does_not_start(made: str, tmp_path: Path) -> None:
    """Who enters a namespace leaves the chroot: it was the machine's sshd that then was started."""
    (tmp_path / "root").mkdir()
    output, errors = start_instance(IN_A_CHROOT.format(made), tmp_path)
    assert "it needs a root directory that is no chroot" in errors[-1]
    assert output == ""


def test_without_privileges_it_does_not_start(tmp_path: Path) -> None:
    output, errors = start_instance(WITHOUT_PRIVILEGES, tmp_path)
    assert errors[-1].endswith("it needs namespaces (Operation not permitted)")
    assert output == ""


def test_a_reboot_keeps_the_spool_and_nothing_that_runs(box: Instance) -> None:
    box.hook(arguments=["background"])
    for folder in ("/var/spool/tattle", "/var/cache/tattle", "/run/tattle"):
        box.write(f"{folder}/something", "")
    boot_id = box.boot_id()
    assert boot_id not in Path(BOOT_ID).read_text()
    box.reboot()
    assert box.processes() == []
    assert box.spool() == ["something"]
    assert not box.path("/var/cache/tattle").exists()
    assert not box.path("/run/tattle").exists()
    assert box.run(["cat", BOOT_ID]).stdout.strip() == box.boot_id() != boot_id
    assert box.ssh("ubuntu", "echo up").stdout == "up\n"


def test_a_reset_undoes_what_a_test_did(box: Instance) -> None:
    stock = box.read("/etc/pam.d/sshd")
    box.configure_pam("background")
    file = box.path("/etc/pam.d") / "sshd"
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")
    box.write("/etc/tattle.conf", "[tattle]\n")
    box.imds.set(fault=500)
    box.start_sshd("PermitUserEnvironment yes")
    box.ssh("ubuntu", "true")
    box.reset()
    assert box.read("/etc/pam.d/sshd") == stock
    assert not box.path("/etc/tattle.conf").exists()
    assert box.imds.settings.fault is None
    assert box.processes() == []
    assert "PermitUserEnvironment" not in box.read("/etc/ssh/sshd_config.d/test.conf")
    assert box.log(None) == []
    assert box.ssh("ubuntu", "true").returncode == 0


def test_it_ends_when_the_tests_are_killed() -> None:
    need_root(*Instance.TOOLS)
    code = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
        "from standins.instance import Instance\nbox = Instance().__enter__()\n"
        "print(box.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        first = Path("/proc", tests.stdout.readline().strip())
        assert first.exists()
        tests.kill()
    eventually(lambda: not first.exists())
