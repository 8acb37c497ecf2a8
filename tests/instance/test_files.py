"""Files that somebody else could have written are not used; what tattle writes is root's alone.

What is trusted is decided in tattle.trust: unit/test_trust.py has every way to spoil a file. Here
is what comes of it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standins.instance import SPOOL, TATTLE, USERS, Instance
from support import SYSTEM_PYTHON

pytestmark = pytest.mark.root

CACHE = "/var/cache/tattle"
SECOND_CACHE = "/run/tattle"
ELSEWHERE = "/home/alice/elsewhere"
OWNED = "/tmp/owned"
ALICE = USERS["alice"]
# Not a shell, which would put the environment in an order of its own. Python adds LC_CTYPE to it.
LET_ANYBODY_READ = [
    *(SYSTEM_PYTHON, "-ISc"),
    "import os, sys; os.umask(0)\n"
    "os.execv('/usr/bin/env', ['env', '-u', 'LC_CTYPE', *sys.argv[1:]])",
]

Spoil = Callable[[Instance, str], None]


@pytest.fixture
def no_cache(instance: Instance) -> Iterator[None]:
    """Nothing is unpacked yet; and what a test plants does not outlive it."""
    remove = ["rm", "-rf", CACHE, SECOND_CACHE]
    instance.run(remove, check=True)
    yield
    instance.kill_deliverers()
    instance.run(remove, check=True)


def belongs_to_alice(box: Instance, path: str) -> None:
    os.chown(box.path(path), ALICE, ALICE)


def all_can_write(box: Instance, path: str) -> None:
    box.path(path).chmod(box.path(path).stat().st_mode | 0o002)


def leads_through_alices_folder(box: Instance, path: str) -> None:
    """Root's symbolic link to a file of root's in a folder of hers, who could exchange it."""
    box.run(["mkdir", "-p", ELSEWHERE], check=True)
    box.run(["mv", path, f"{ELSEWHERE}/real"], check=True)
    box.run(["chown", "alice", ELSEWHERE], check=True)
    box.run(["ln", "-s", f"{ELSEWHERE}/real", path], check=True)


# The spool


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (belongs_to_alice, SPOOL),
        (leads_through_alices_folder, SPOOL),
        (all_can_write, "/var/spool"),
    ],
)
def test_a_spool_that_is_not_roots_alone_is_not_used(
    instance: Instance, spoil: Spoil, path: str
) -> None:
    instance.run(["mkdir", "-m", "700", SPOOL], check=True)
    spoil(instance, path)
    before = listing(instance, "/var/spool")
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(1)
    assert "waits in /run/tattle-spool" in instance.syslog.wait_for(path).message
    assert listing(instance, "/var/spool") == before
    assert os.listdir(instance.path(SPOOL)) == []


def test_what_is_not_a_record_in_the_spool_is_never_followed_or_waited_for(
    instance: Instance,
) -> None:
    instance.eventbridge.set(fault="refuse")
    instance.hook()
    instance.kill_deliverers()
    instance.write("/root/secret", "PAM_SERVICE=secret\0PAM_USER=secret\0PAM_TYPE=open_session\0")
    instance.run(["ln", "-s", "/root/secret", f"{SPOOL}/00000000000000000001-1"], check=True)
    instance.run(["mkfifo", f"{SPOOL}/00000000000000000002-1"], check=True)
    instance.run(["mkdir", f"{SPOOL}/00000000000000000003-1"], check=True)
    instance.eventbridge.set(fault=None)
    flushed = instance.run([TATTLE, "flush"])
    assert (flushed.returncode, flushed.stdout) == (0, "1 delivered, 0 remain, 3 rejected\n")
    assert len(listing(instance, f"{SPOOL}/rejected")) == 3
    assert len(instance.log()) >= 3
    assert not any("secret" in line.message for line in instance.log())


# The cache


def build(artifact: Path) -> str:
    with zipfile.ZipFile(artifact) as archive:
        name = json.loads(archive.read("environment.json"))["build_id"]
    tag = "import sys; print(sys.implementation.cache_tag, end='')"
    return f"{name}-{subprocess.check_output([SYSTEM_PYTHON, '-IS', '-c', tag], text=True)}"


TRAP = f"""\
import os
open({OWNED!r}, "a").close()
raise SystemExit("alice's code")
"""


def plant(box: Instance, artifact: Path, cache: str) -> None:
    """A cache with all that tattle looks for, and other code in it."""
    site = f"{cache}/{build(artifact)}/site-packages"
    for module in ("botocore/__init__.py", "urllib3/__init__.py", "six.py"):
        box.write(f"{site}/{module}", TRAP)
    box.run(["chmod", "700", cache], check=True)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (belongs_to_alice, CACHE),
        (leads_through_alices_folder, CACHE),
        (all_can_write, "/var/cache"),
    ],
)
def test_a_cache_that_is_not_roots_alone_is_not_used(
    instance: Instance, artifact: Path, spoil: Spoil, path: str
) -> None:
    plant(instance, artifact, CACHE)
    spoil(instance, path)
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert not instance.path(OWNED).exists()
    assert instance.path(f"{SECOND_CACHE}/{build(artifact)}/site-packages").exists()


@pytest.mark.usefixtures("no_cache")
def test_where_no_cache_can_be_used_the_event_waits_and_the_log_says_why(
    instance: Instance, artifact: Path
) -> None:
    for cache in (CACHE, SECOND_CACHE):
        plant(instance, artifact, cache)
        belongs_to_alice(instance, cache)
    assert instance.hook().returncode == 0
    message = instance.syslog.wait_for("can't unpack").message
    assert CACHE in message
    assert SECOND_CACHE in message
    assert len(instance.spool()) == 1
    assert not instance.path(OWNED).exists()
    instance.run(["rm", "-rf", CACHE, SECOND_CACHE], check=True)
    instance.eventbridge.wait_for(1)  # it tries again by itself


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_where_var_is_full_or_read_only_run_serves(
    instance: Instance, artifact: Path, fault: str
) -> None:
    options = {"full": "size=200k,mode=755", "read-only": "ro,mode=755"}[fault]
    instance.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/var/cache"], check=True)
    try:
        instance.hook()
        instance.eventbridge.wait_for(1)
        assert instance.path(f"{SECOND_CACHE}/{build(artifact)}/site-packages").exists()
        assert instance.log() == []
    finally:
        instance.kill_deliverers()
        instance.run(["umount", "/var/cache"], check=True)


@pytest.mark.usefixtures("no_cache")
def test_what_other_builds_and_a_killed_unpacking_left_is_removed(
    instance: Instance, artifact: Path
) -> None:
    plant(instance, artifact, CACHE)
    build_folder = instance.path(f"{CACHE}/{build(artifact)}")
    build_folder.rename(build_folder.with_name(f".{build_folder.name}"))
    for old in ("0" * 64, f".{'0' * 64}"):
        instance.write(f"{CACHE}/{old}/site-packages/six.py", TRAP)
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert not instance.path(OWNED).exists()
    assert listing(instance, CACHE) == [build(artifact)]


# Configuration: tattle's, and AWS's


@pytest.mark.parametrize("path", ["/root/.aws/config", "/etc/boto.cfg"])
def test_a_configuration_that_somebody_else_could_have_written_is_not_used(
    instance: Instance, path: str
) -> None:
    """The others: unit/test_trust.py. What check and the smoke test say: messages.py."""
    instance.write(path, "[default]\n", owner="alice")
    assert instance.hook().returncode == 0
    message = instance.syslog.wait_for("events wait in the spool").message
    assert f"{path} belongs to or can be written by somebody else" in message
    assert len(instance.spool()) == 1
    assert instance.eventbridge.connection_count() == 0


# What tattle writes


def test_what_is_written_is_roots_alone_whatever_the_callers_umask(instance: Instance) -> None:
    instance.eventbridge.set(fault="refuse")
    assert instance.hook(wrapper=LET_ANYBODY_READ).returncode == 0
    instance.syslog.wait_for("events wait in the spool")
    instance.path(f"{SPOOL}/rubbish").touch()  # which is taken away at once
    instance.syslog.wait_for("rejected: ")
    written = [
        path for top in (SPOOL, CACHE) for path in (instance.path(top), *walk(instance.path(top)))
    ]
    assert len(written) > 100
    for path in written:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
    for path in (instance.path(SPOOL), instance.path(CACHE), instance.path(f"{SPOOL}/rejected")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (record,) = [name for name in instance.spool() if name != "rejected"]
    assert stat.S_IMODE(instance.path(f"{SPOOL}/{record}").stat().st_mode) == 0o600
    for path in written:
        inside = f"/{path.relative_to(instance.path('/'))}"
        assert instance.run(["/usr/bin/test", "-r", inside], user="alice").returncode == 1
        if inside.count("/") > 5:
            break  # what lies deeper lies behind the same closed doors


def walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def listing(box: Instance, folder: str) -> list[str]:
    return sorted(os.listdir(box.path(folder)))


def test_a_home_that_sudo_kept_is_not_to_become_roots(instance: Instance) -> None:
    instance.write("/home/alice/.aws/config", "[default]\n", owner="alice")
    done = instance.run(
        [TATTLE, "--dry-run"],
        env={"PAM_TYPE": "open_session", "PAM_USER": "u", "HOME": "/home/alice"},
    )
    assert done.returncode == 77
    assert "/home/alice" in done.stderr
    assert "chown" not in done.stderr
    assert "option -H" in done.stderr
