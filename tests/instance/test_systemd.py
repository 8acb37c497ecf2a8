"""The units among the recipes: `tattle flush` runs under every restriction that they ask for.

There is no systemd where the tests run. What a restriction would forbid is looked for in what the
flush does; what the kernel can forbid without systemd, it forbids.
"""

from __future__ import annotations

import configparser
import glob
import re
import shlex
import shutil
import subprocess

import pytest

from standins.instance import SPOOL, TATTLE, Instance
from support import need_root
from tattle.shell import recipe

CACHE = "/var/cache/tattle"
UNITS = "/etc/systemd/system"
TRACE = "/tmp/trace"
MOST_EXPOSURE = 2.5  # of 10, as `systemd-analyze security` counts; under 2 is "OK", over 7 "unsafe"


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(recipe.text("tattle.service"))
    return unit["Service"]


@pytest.fixture
def installed(instance: Instance) -> Instance:
    """An instance with the units at their place."""
    need_root("systemd-analyze")
    for name in ("tattle.path", "tattle.service"):
        instance.write(f"{UNITS}/{name}", recipe.text(name))
    return instance


def accept(box: Instance) -> None:
    """Have one event in the spool that nobody delivers."""
    with box.locked():
        assert box.hook().returncode == 0


def restricted(service: configparser.SectionProxy, command: list[str]) -> list[str]:
    """The command with the file system, the capabilities and the umask that the service has."""
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == "true"
    writable = [path.lstrip("-") for path in service["ReadWritePaths"].split()]
    writable.append(f"/var/cache/{service['CacheDirectory']}")
    script = [
        "set -eu",
        f"umask {service['UMask']}",
        f"mkdir -p -m {service['CacheDirectoryMode']} {CACHE}",
        *(f"mount --bind {path} {path}" for path in writable),
        "for folder in /etc /home /root /run /usr/local/bin /var/cache /var/log /var/spool; do",
        "    mount -o remount,bind,ro $folder",
        "done",
        "mount -t tmpfs tmpfs /var/tmp",
        "exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs " + shlex.join(command),
    ]
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", "\n".join(script)]


def filter_set(name: str) -> set[str]:
    """The system calls of one of systemd's sets, and of those within it."""
    command = ["systemd-analyze", "syscall-filter", name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    members = [
        line.strip() for line in output.splitlines()[1:] if line.strip()[:1] not in ("", "#")
    ]
    calls = {member for member in members if not member.startswith("@")}
    return calls.union(*(filter_set(member) for member in members if member.startswith("@")))


@pytest.mark.root
def test_systemd_understands_the_units(installed: Instance) -> None:
    names = [f"{UNITS}/tattle.path", f"{UNITS}/tattle.service"]
    done = installed.run(["systemd-analyze", "verify", "--man=no", *names])
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "tattle" in line] == []
    installed.write(f"{UNITS}/tattle.service", recipe.text("tattle.service") + "NoSuchThing=1\n")
    done = installed.run(["systemd-analyze", "verify", "--man=no", *names])
    assert "NoSuchThing" in done.stderr  # else it would say nothing of anything


@pytest.mark.root
def test_systemd_thinks_the_service_well_confined(installed: Instance) -> None:
    limit = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    done = installed.run(
        ["systemd-analyze", "security", "--offline=true", limit, f"{UNITS}/tattle.service"]
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.root
def test_the_flush_needs_no_more_than_the_service_allows(
    instance: Instance, service: configparser.SectionProxy
) -> None:
    """Neither the one that unpacks, with the deliverer that it starts, nor the next."""
    need_root("strace", "systemd-analyze", "setpriv")
    shutil.rmtree(instance.path(CACHE), ignore_errors=True)
    accept(instance)
    assert service["ExecStart"] == f"{TATTLE} flush"
    twice = ["sh", "-c", f"{TATTLE} flush && {TATTLE} flush"]
    done = instance.run(restricted(service, ["strace", "-f", "-o", TRACE, *twice]))
    assert (done.returncode, done.stdout) == (
        0,
        "1 delivered, 0 remain\n0 delivered, 0 remain\n",
    ), done
    trace = re.findall(r"^\d+ +(\w+)\((.*)$", instance.read(TRACE), re.MULTILINE)
    assert {name for name, _ in trace} <= filter_set(service["SystemCallFilter"])
    families = {rest.partition(",")[0] for name, rest in trace if name == "socket"}
    assert families <= {*service["RestrictAddressFamilies"].split()}
    assert "AF_INET" in families
    assert service["MemoryDenyWriteExecute"] == "true"
    for name, rest in trace:
        assert not (name == "mmap" and "PROT_WRITE|PROT_EXEC" in rest), rest
        assert not (name in ("mprotect", "pkey_mprotect") and "PROT_EXEC" in rest), rest
        assert not re.search(r"CLONE_NEW", rest), rest
    # Nothing that it tried to write was read-only, but Python's bytecode of the standard library.
    # (A deliverer that begins anew has a session of its own already.)
    calls = [rest for name, rest in trace if name != "setsid"]
    refused = [rest for rest in calls if re.search(r"= -1 (EROFS|EPERM|EACCES)", rest)]
    assert [rest for rest in refused if "__pycache__" not in rest] == []


@pytest.mark.root
def test_without_room_for_its_cache_the_flush_says_so(
    instance: Instance, service: configparser.SectionProxy
) -> None:
    """The sandbox is one: without CacheDirectory there is nowhere to unpack to."""
    instance.path(CACHE).mkdir(0o700, exist_ok=True)
    shutil.rmtree(instance.path(CACHE))
    shutil.rmtree(instance.path("/run/tattle"), ignore_errors=True)
    accept(instance)
    elsewhere = restricted(service, [TATTLE, "flush"])
    elsewhere[-1] = elsewhere[-1].replace(f"mount --bind {CACHE} {CACHE}\n", "")
    done = instance.run(elsewhere)
    assert (done.returncode, done.stdout) == (75, "0 delivered, 1 remain\n")
    assert "Read-only file system" in done.stderr


@pytest.mark.root
def test_the_path_unit_starts_it_only_while_records_wait(instance: Instance) -> None:
    (pattern,) = re.findall(r"^PathExistsGlob=(.*)$", recipe.text("tattle.path"), re.MULTILINE)
    inside = str(instance.path("/")) + pattern

    def starts() -> bool:
        return glob.glob(inside) != []

    assert not starts()
    accept(instance)
    assert starts()
    instance.eventbridge.set(fault="throttle")
    assert instance.run([TATTLE, "flush"]).returncode != 0  # tried again by Restart=on-failure
    assert starts()
    instance.eventbridge.set(fault=None)
    (instance.path(SPOOL) / "1-foreign").touch()
    (instance.path(SPOOL) / ".accepting-1").touch()
    assert instance.run([TATTLE, "flush"]).returncode == 0
    assert instance.spool() == [".accepting-1", "rejected"]
    assert not starts()


def test_a_flush_that_fails_is_tried_again(service: configparser.SectionProxy) -> None:
    assert service["Type"] == "oneshot"
    assert service["Restart"] == "on-failure"
    assert int(service["RestartSec"]) >= 30
    assert "StartLimitIntervalSec=0" in recipe.text("tattle.service").splitlines()
