"""What an ordinary user can try by `su`, whose hook gets the caller's folder, limits and real uid.

The lines for su in README.md close what only PAM can close: Python itself can't start, or spins,
under the limits that a caller chose, and a process can be stopped by whose real uid it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import readme_blocks as readme
from standins.instance import SPOOL, SYSTEM_PYTHON, TATTLE, Instance, Process
from support import cgroup, eventually, find_pythons, need_root, repacked

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTHONS = find_pythons()
# Where Python looks for its modules is C up to 3.10, and Python from then on.
OLDEST_AND_NEWEST = sorted({next(iter(PYTHONS)), next(reversed(PYTHONS))})
EVIL = "/home/alice/evil"  # alice's folder, from which she runs su
OWNED = "/tmp/owned"  # her code writes there when root runs it
TRAP = f"""\
import posix
if posix.geteuid() == 0:
    posix.close(posix.open({OWNED!r}, posix.O_CREAT))
"""
# Upstream's stack, as far as it concerns the hook: its pam_limits leaves RLIMIT_DATA alone.
STACK = """\
auth     sufficient pam_permit.so
account  required   pam_permit.so
session  required   pam_permit.so
"""
HOOK = f"session optional pam_exec.so {TATTLE}\n"
# set_all: the limits of process 1. requisite and default=die: where a limit leaves no room for a
# module, PAM would go on without it.
LINES_FOR_SU = readme.text("pam-lines-su")
MEMORY_LIMITS = ("memory.limit_in_bytes", "memory.max")  # cgroup version 1, version 2
# One hook for each limit (kB) about which Python starts and then runs out of memory. Some Pythons
# spin at some of them, by themselves.
SWEEP = f"""
    n=2600
    while [ $n -lt 5800 ] && [ ! -e {OWNED} ]; do
        (ulimit -S -d $n; exec timeout --signal=KILL 1 "$@")
        n=$((n + 100))
    done
"""
HOOKS_COMMAND = "python3 -BISXutf8 -c import sys"
LIMITS = range(1000, 20_001, 1000)  # kB
SECONDS = 20  # for one su: far more than it takes where nothing spins


@pytest.fixture(scope="module", params=OLDEST_AND_NEWEST)
def box(request: pytest.FixtureRequest, artifact: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    version: str = request.param
    with Instance(artifact) as box:
        box.replace_python(PYTHONS[version])
        trap = f"{EVIL}/lib/python{version}"
        for path, content in (
            (f"{EVIL}/pyvenv.cfg", f"home = {EVIL}/bin\n"),
            (f"{EVIL}/bin/python3", "#!/bin/sh\n"),
            (f"{trap}/os.py", TRAP),
            (f"{trap}/encodings/__init__.py", TRAP),
            (f"{trap}/lib-dynload/empty", ""),
        ):
            box.write(path, content, 0o755, owner="alice")
        yield box


@pytest.mark.parametrize("aim", ["a folder with a pyvenv.cfg", "PATH"])
def test_what_the_caller_chooses_is_not_where_root_takes_its_code_from(
    box: Instance, aim: str
) -> None:
    """PATH: as pam_env has it where a user's own variables are let in."""
    box.path(OWNED).unlink(missing_ok=True)
    folder, target, pam_env = EVIL, "ubuntu", ""
    if aim == "PATH":
        folder, target, pam_env = "/", "alice", "session required pam_env.so user_readenv=1\n"
    box.write("/etc/pam.d/su", pam_env + STACK + HOOK)
    box.write("/home/alice/.pam_environment", f"PATH DEFAULT={EVIL}/bin\n", owner="alice")
    script = ["/bin/sh", "-c", f"cd {folder}\n{SWEEP}", "-", "su", target, "-c", "true"]
    with box.locked():  # the hooks are what is attacked, not their deliverers
        done = box.run(script, user="alice", timeout=120)
        assert not box.path(OWNED).exists()
        assert box.spool(), done


def test_whatever_limits_the_caller_has_su_is_refused_or_reported(box: Instance) -> None:
    box.write("/etc/pam.d/su", STACK + LINES_FOR_SU)
    refused = []
    with box.locked():
        for limit in ("-d", "-v"):
            for kilobytes in LIMITS:
                count = len(box.spool())
                script = f"ulimit -S {limit} {kilobytes}; exec su ubuntu -c true"
                done = box.run(["/bin/sh", "-c", script], user="alice", timeout=SECONDS)
                if done.returncode:
                    refused.append((limit, kilobytes))
                reported = len(box.spool()) - count
                assert reported == (0 if done.returncode else 2), (limit, kilobytes, done)
    # What is refused does not get as far as PAM, or has no room for PAM's modules.
    assert all(limit == "-v" and kilobytes < 6000 for limit, kilobytes in refused)


@pytest.mark.parametrize("control", ["optional", "[success=ok default=die]"])
@pytest.mark.parametrize(
    ("service", "lines", "command"),
    [
        ("su", "pam-lines-su", "su ubuntu -c 'echo in'"),
        ("sudo", "pam-line-sudo", "sudo -u ubuntu echo in"),
    ],
)
def test_a_hook_that_its_callers_cgroup_kills_lets_nobody_in_by_readmes_line(
    box: Instance, service: str, lines: str, command: str, control: str
) -> None:
    """As `systemd-run --user --scope -p MemoryMax=3M su ubuntu` does it."""
    need_root("sudo")
    (line,) = re.findall(r"session +\S.*pam_exec.*tattle(?=['\n])", readme.text(lines))
    assert " [success=ok default=die] " in line
    line = line.replace("[success=ok default=die]", control)
    box.write(f"/etc/pam.d/{service}", f"{STACK}{line}\n")
    box.write("/etc/sudoers.d/alice", "alice ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    as_alice = "setpriv --reuid=alice --regid=alice --init-groups"
    with cgroup("memory") as folder, box.locked():
        (limit,) = (folder / name for name in MEMORY_LIMITS if (folder / name).exists())
        for megabytes, can_run in ((3, False), (300, True)):
            limit.write_text(f"{megabytes}M")
            before = len(box.spool())
            script = f"echo 0 >{folder}/cgroup.procs; exec {as_alice} {command}"
            done = box.run(["/bin/sh", "-c", script], timeout=SECONDS)
            # Debian 13: sudo is what the kernel kills, and its hook waits for memory.
            box.kill(*box.processes(TATTLE))
            goes_on = control == "optional" and done.returncode >= 0
            assert (done.stdout == "in\n") == (can_run or goes_on), done
            assert len(box.spool()) - before == (2 if can_run else 0), done


@pytest.fixture(scope="module")
def slow(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that begins once there is /tmp/go."""

    def wait(name: str, content: bytes) -> bytes:
        wait = b"import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)\n"
        return wait * (name == "__main__.py") + content

    path = tmp_path_factory.mktemp("slow") / "tattle"
    repacked(artifact, path, wait)
    return path


def hooks(box: Instance) -> list[Process]:
    """The hooks that run, and not what they have started."""
    return [one for one in box.processes(HOOKS_COMMAND) if "deliver" not in one.command]


# Has a su that is killed leave its hook to this process: PR_SET_CHILD_SUBREAPER, prctl(2)
ADOPTS = """
import ctypes, subprocess, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.run(["su", "ubuntu", "-c", "true"])
time.sleep(60)
"""


@pytest.mark.parametrize("adopts", [False, True], ids=["by process 1", "by one of its caller's"])
def test_what_a_su_opened_that_is_killed_before_its_hook_has_ended_is_closed(
    slow: Path, adopts: bool
) -> None:
    """As the kernel does it for memory. The hook is another process's child then."""
    need_root(*Instance.TOOLS)
    command = [SYSTEM_PYTHON, "-c", ADOPTS] if adopts else ["su", "ubuntu", "-c", "true"]
    with Instance(slow) as box:
        box.write("/etc/pam.d/su", STACK + HOOK)
        with box.popen(command, user="alice") as callers:
            eventually(lambda: hooks(box))
            (hook,) = hooks(box)
            (su,) = (one for one in box.processes() if one.pid == hook.parent)
            box.kill(su)
            adopter = su.parent if adopts else 1
            eventually(lambda: [one.parent for one in hooks(box)] == [adopter])
            box.write("/tmp/go", "")
            box.eventbridge.wait_for(2)
            assert not adopts or callers.poll() is None
            callers.kill()
        sessions = [detail["session"] for detail in box.eventbridge.details()]
        assert sessions == ["opened", "closed"]


def test_a_su_that_is_killed_while_it_closes_is_closed_by_the_ledger(slow: Path) -> None:
    """Its hook does not know any longer whose session that is, and does not make another one up."""
    need_root(*Instance.TOOLS)
    with Instance(slow) as box:
        box.write("/etc/tattle.conf", "[tattle]\nfields = session, session_id, duration\n")
        box.write("/etc/pam.d/su", STACK + HOOK)
        box.write("/tmp/go", "")
        with box.popen(["su", "ubuntu", "-c", "read line"], user="alice", stdin=-1) as su:
            box.eventbridge.wait_for(1)
            eventually(lambda: box.path(f"{SPOOL}/open/.looked").exists())
            box.path("/tmp/go").unlink()
            assert su.stdin
            su.stdin.close()
            eventually(lambda: hooks(box))
            box.run(["kill", "-KILL", str(hooks(box)[0].parent)], check=True)
            eventually(lambda: [one.parent for one in hooks(box)] == [1])
            box.write("/tmp/go", "")
            eventually(lambda: None in [one["session_id"] for one in box.eventbridge.details()])
        opened, *closed = box.eventbridge.details()
        nameless = {"session": "closed", "session_id": None, "duration": None}
        assert [one for one in closed if one["session_id"] is None] == [nameless]
        by_ledger = [one for one in closed if one != nameless]
        assert by_ledger in ([], [{**nameless, "session_id": opened["session_id"]}])
        if not by_ledger:  # a look is due in a minute; or one was late, and is over by now
            (left,) = box.path(f"{SPOOL}/open").glob("*.*.*")
            assert b"PAM_TYPE=open_session" in left.read_bytes()


@pytest.mark.parametrize(("option", "can"), [("", True), ("seteuid", False)])
@pytest.mark.parametrize("signal", ["STOP", "KILL"])
def test_the_caller_can_stop_a_hook_only_where_it_has_the_callers_real_uid(
    slow: Path, signal: str, option: str, can: bool
) -> None:
    need_root(*Instance.TOOLS)
    with Instance(slow) as box, box.locked():
        box.write("/etc/pam.d/su", STACK + HOOK.replace("exec.so", f"exec.so {option}"))
        with box.popen(["su", "ubuntu", "-c", "true"], user="alice") as su:
            eventually(lambda: hooks(box))
            (hook,) = hooks(box)
            done = box.run(["kill", f"-{signal}", str(hook.pid)], user="alice")
            assert (done.returncode == 0) == can, done
            box.run(["kill", "-CONT", str(hook.pid)])
            box.write("/tmp/go", "")
            assert su.wait(SECONDS) == 0
        assert len(box.spool()) == (1 if can and signal == "KILL" else 2)
