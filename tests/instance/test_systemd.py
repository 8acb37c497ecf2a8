"""The units among the recipes: `tattle flush` runs under every restriction that they ask for.

There is no systemd where the tests run. What a restriction would forbid is looked for in what the
flush does; what the kernel can forbid without systemd, it forbids.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess

import pytest

from standins.instance import SPOOL, TATTLE, Instance
from support import need_root
from tattle.login.spool import EMERGENCY_PATH
from tattle.shell import recipe

CACHE = "/var/cache/tattle"
FOLDER = "/etc/systemd/system"
UNITS = ("tattle.timer", "tattle.service", "tattle-shutdown.service")
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
    for name in UNITS:
        instance.write(f"{FOLDER}/{name}", recipe.text(name))
    return instance


def accept(box: Instance) -> None:
    """Have one event in the spool that nobody delivers."""
    with box.locked():
        assert box.hook().returncode == 0


def restricted(service: configparser.SectionProxy, command: list[str]) -> list[str]:
    """The command with the file system, the capabilities, the umask and the network that the
    service has."""
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == "true"
    before = service["ExecStartPre"]
    assert before.startswith("-+")  # without the sandbox, and it may fail
    script = [
        "set -eu",
        before[2:],
        f"umask {service['UMask']}",
        f"mkdir -p -m {service['CacheDirectoryMode']} {CACHE}",
        f"mount --bind {CACHE} {CACHE}",
    ]
    for path in service["ReadWritePaths"].split():
        assert path.startswith("-")  # it need not be there
        script.append(f"[ ! -e {path[1:]} ] || mount --bind {path[1:]} {path[1:]}")
    script += [
        "for folder in /etc /home /root /run /usr/local/bin /var/cache /var/log /var/spool; do",
        "    mount -o remount,bind,ro $folder",
        "done",
        "mount -t tmpfs tmpfs /var/tmp",
        "exec setpriv --bounding-set=-all,+net_bind_service --inh-caps=-all --no-new-privs "
        + shlex.join(command),
    ]
    network = ["--net"] if service.get("PrivateNetwork") == "true" else []
    unshare = ["unshare", "--mount", *network, "--propagation=private"]
    return [*unshare, "sh", "-c", "\n".join(script)]


# What restricted() has the kernel forbid, or is looked for in the trace of a flush, and what
# concerns only calls that the trace shows it does not make.
TRIED = """
ProtectSystem ReadWritePaths CacheDirectory CacheDirectoryMode UMask ProtectHome PrivateTmp
CapabilityBoundingSet NoNewPrivileges RestrictAddressFamilies SystemCallFilter
MemoryDenyWriteExecute RestrictNamespaces
PrivateDevices ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs
ProtectKernelModules ProtectKernelTunables LockPersonality RestrictRealtime RestrictSUIDSGID
SystemCallArchitectures
"""
NO_RESTRICTIONS = "Type ExecStartPre ExecStart TimeoutStartSec Nice"


def test_there_is_no_restriction_that_is_not_tried(service: configparser.SectionProxy) -> None:
    """PrivateNetwork=true, for one, would please `systemd-analyze security`."""
    assert {*service} - {*NO_RESTRICTIONS.split()} == {*TRIED.split()}


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
def test_systemd_thinks_the_service_well_confined(installed: Instance) -> None:
    limit = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    done = installed.run(
        ["systemd-analyze", "security", "--offline=true", limit, f"{FOLDER}/tattle.service"]
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
def test_what_waits_in_both_spools_is_delivered(
    instance: Instance, service: configparser.SectionProxy
) -> None:
    accept(instance)
    instance.run(["cp", "-a", SPOOL, EMERGENCY_PATH], check=True)
    accept(instance)
    done = instance.run(restricted(service, [TATTLE, "flush"]))
    assert (done.returncode, done.stdout) == (0, "3 delivered, 0 remain\n"), done


@pytest.mark.root
def test_where_there_is_no_spool_yet_there_is_nothing_to_say(
    instance: Instance, service: configparser.SectionProxy
) -> None:
    """The timer is quicker than the first login."""
    shutil.rmtree(instance.path(SPOOL), ignore_errors=True)
    done = instance.run(restricted(service, [TATTLE, "flush"]))
    assert (done.returncode, done.stdout) == (0, "0 delivered, 0 remain\n"), done
    assert instance.path(SPOOL).stat().st_mode & 0o777 == 0o700


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
