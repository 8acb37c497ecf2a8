"""Files that somebody else could have written are not used; what tattle writes is root's alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standins.instance import SPOOL, TATTLE, USERS, Instance
from support import SYSTEM_PYTHON, need_root
from tattle.errors import TattleError
from tattle.trust import private_folder, trusted

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


@pytest.fixture(scope="module")
def own_instance(artifact: Path) -> Iterator[Instance]:
    """What these tests do to folders is nothing for other tests' instance."""
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        yield box


@pytest.fixture
def instance(own_instance: Instance) -> Iterator[Instance]:
    own_instance.reset()
    own_instance.run(["rm", "-rf", ELSEWHERE], check=True)
    yield own_instance
    own_instance.kill_deliverers()
    for folder in ("/var/cache", "/var/spool", "/run"):
        os.chown(own_instance.path(folder), 0, 0)
        own_instance.path(folder).chmod(0o755)


@pytest.fixture
def no_cache(instance: Instance) -> Iterator[None]:
    """Nothing is unpacked yet; and what a test plants does not outlive it."""
    remove = ["rm", "-rf", CACHE, SECOND_CACHE]
    instance.run(remove, check=True)
    yield
    instance.kill_deliverers()
    instance.run(remove, check=True)


# Whatever may be wrong with a file or a folder


def belongs_to_alice(box: Instance, path: str) -> None:
    os.chown(box.path(path), ALICE, ALICE)


def group_can_write(box: Instance, path: str) -> None:
    box.path(path).chmod(box.path(path).stat().st_mode | 0o020)


def all_can_write(box: Instance, path: str) -> None:
    box.path(path).chmod(box.path(path).stat().st_mode | 0o002)


def is_alices_link(box: Instance, path: str) -> None:
    """A symbolic link of hers to a file that is root's."""
    box.run(["mv", path, f"{path}.real"], check=True)
    box.run(["ln", "-s", f"{path}.real", path], check=True)
    box.run(["chown", "-h", "alice", path], check=True)


def leads_through_alices_folder(box: Instance, path: str) -> None:
    """Root's symbolic link to a file of root's in a folder of hers, who could exchange it."""
    box.run(["mkdir", "-p", ELSEWHERE], check=True)
    box.run(["mv", path, f"{ELSEWHERE}/real"], check=True)
    box.run(["chown", "alice", ELSEWHERE], check=True)
    box.run(["ln", "-s", f"{ELSEWHERE}/real", path], check=True)


SPOILT: list[Spoil] = [
    belongs_to_alice,
    group_can_write,
    all_can_write,
    is_alices_link,
    leads_through_alices_folder,
]


# The spool


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spool_that_is_not_roots_alone_is_not_used(instance: Instance, spoil: Spoil) -> None:
    instance.run(["mkdir", "-m", "700", SPOOL], check=True)
    spoil(instance, SPOOL)
    before = listing(instance, "/var/spool")
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(1)
    assert "waits in /run/tattle-spool" in instance.syslog.wait_for(SPOOL).message
    assert listing(instance, "/var/spool") == before


@pytest.mark.parametrize("spoil", [belongs_to_alice, group_can_write, all_can_write])
def test_nor_one_in_a_folder_that_somebody_else_can_write(instance: Instance, spoil: Spoil) -> None:
    spoil(instance, "/var/spool")
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(1)
    assert "waits in /run/tattle-spool" in instance.syslog.wait_for("/var/spool").message
    assert not instance.path(SPOOL).exists()


def test_nor_one_that_others_can_look_into(instance: Instance) -> None:
    instance.run(["mkdir", "-m", "755", SPOOL], check=True)
    assert instance.hook().returncode == 0
    instance.eventbridge.wait_for(1)
    assert "0700" in instance.syslog.wait_for(SPOOL).message


def test_nor_a_file_or_a_link_in_its_place(instance: Instance) -> None:
    instance.run(["mkdir", "-m", "700", f"{SPOOL}.real"], check=True)
    for make in (["touch", SPOOL], ["ln", "-sfn", f"{SPOOL}.real", SPOOL], ["mkfifo", SPOOL]):
        instance.eventbridge.clear()
        instance.run(["rm", "-f", SPOOL], check=True)
        instance.run(make, check=True)
        assert instance.hook().returncode == 0
        instance.eventbridge.wait_for(1)
    assert listing(instance, f"{SPOOL}.real") == []


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
    assert (flushed.returncode, flushed.stdout) == (0, "1 delivered, 0 remain, 3 set aside\n")
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
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_cache_that_is_not_roots_alone_is_not_used(
    instance: Instance, artifact: Path, spoil: Spoil
) -> None:
    plant(instance, artifact, CACHE)
    spoil(instance, CACHE)
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert not instance.path(OWNED).exists()
    assert instance.path(f"{SECOND_CACHE}/{build(artifact)}/site-packages").exists()


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("spoil", [belongs_to_alice, group_can_write, all_can_write])
def test_nor_a_cache_in_a_folder_that_somebody_else_can_write(
    instance: Instance, artifact: Path, spoil: Spoil
) -> None:
    spoil(instance, "/var/cache")
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert not instance.path(CACHE).exists()
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
def test_stale_builds_are_removed(instance: Instance, artifact: Path) -> None:
    old = "0" * 64
    instance.write(f"{CACHE}/{old}/site-packages/botocore/__init__.py", TRAP)
    instance.write(f"{CACHE}/.{old}/site-packages/six.py", TRAP)
    instance.run(["chmod", "700", CACHE], check=True)
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert listing(instance, CACHE) == [build(artifact)]


@pytest.mark.usefixtures("no_cache")
def test_what_a_killed_unpacking_left_is_unpacked_anew(instance: Instance, artifact: Path) -> None:
    plant(instance, artifact, CACHE)
    build_folder = instance.path(f"{CACHE}/{build(artifact)}")
    build_folder.rename(build_folder.with_name(f".{build_folder.name}"))
    instance.hook()
    instance.eventbridge.wait_for(1)
    assert not instance.path(OWNED).exists()
    assert listing(instance, CACHE) == [build(artifact)]


# Configuration: tattle's, and AWS's


def give_ca_bundle(box: Instance, path: str) -> None:
    box.write(path, box.ca.pem)
    box.write("/root/.aws/config", f"[default]\nca_bundle = {path}\n", 0o600)


CONFIGURATION: dict[str, Callable[[Instance, str], None]] = {
    "/etc/tattle.conf": lambda box, path: box.write(path, "[tattle]\n"),
    "/root/.aws/config": lambda box, path: box.write(path, box.read(path), 0o600),
    "/root/.aws/credentials": lambda box, path: box.write(path, "[other]\n", 0o600),
    "/root/.aws/models": lambda box, path: box.write(f"{path}/nothing", ""),
    "/root/.boto": lambda box, path: box.write(path, "[other]\n"),
    "/etc/boto.cfg": lambda box, path: box.write(path, "[other]\n"),
    "/root/ca/ca.pem": give_ca_bundle,
    "/root/.aws": lambda box, path: box.write(f"{path}/config", box.read(f"{path}/config")),
    "/root/ca": lambda box, path: give_ca_bundle(box, f"{path}/ca.pem"),
    "/root": lambda box, path: box.write(f"{path}/.aws/config", box.read(f"{path}/.aws/config")),
}


@pytest.fixture
def root_as_before(instance: Instance) -> Iterator[None]:
    """Spoiling moves files about, which a reset does not know of."""
    instance.run(["cp", "-a", "/root", "/etc/tattle-test-root"], check=True)
    yield
    instance.run(["chown", "root:root", "/root"], check=True)
    instance.run(["chmod", "700", "/root"], check=True)
    script = "rm -rf /root/.aws* /root/.boto* /root/ca* /etc/boto.cfg* /etc/tattle.conf*"
    instance.run(["/bin/sh", "-c", script], check=True)
    instance.run(["cp", "-aT", "/etc/tattle-test-root", "/root"], check=True)
    instance.run(["rm", "-rf", "/etc/tattle-test-root"], check=True)


@pytest.mark.usefixtures("root_as_before")
@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        *((path, belongs_to_alice) for path in CONFIGURATION),
        *(("/etc/tattle.conf", spoil) for spoil in SPOILT[1:]),
        *(("/root/.aws", spoil) for spoil in SPOILT[1:3]),
    ],
)
def test_a_configuration_that_somebody_else_could_have_written_is_not_used(
    instance: Instance, path: str, spoil: Spoil
) -> None:
    CONFIGURATION[path](instance, path)
    spoil(instance, path)
    assert instance.hook().returncode == 0
    message = instance.syslog.wait_for("events wait in the spool").message
    culprit = "/home/alice" if spoil is leads_through_alices_folder else path
    assert culprit in message
    assert "somebody else" in message
    assert len(instance.spool()) == 1
    assert instance.eventbridge.connection_count() == 0


@pytest.mark.usefixtures("root_as_before")
def test_once_it_is_mended_the_event_goes_out(instance: Instance) -> None:
    instance.write("/etc/tattle.conf", "[tattle]\n", 0o666)
    instance.hook()
    instance.syslog.wait_for("/etc/tattle.conf belongs to or can be written by somebody else")
    instance.path("/etc/tattle.conf").chmod(0o644)
    instance.eventbridge.wait_for(1)
    instance.syslog.wait_for("delivering again")


@pytest.mark.usefixtures("root_as_before")
def test_links_of_roots_to_roots_files_are_followed(instance: Instance) -> None:
    instance.write("/root/conf/tattle.conf", "[tattle]\nsource = linked\n")
    instance.run(["ln", "-s", "../root/conf/tattle.conf", "/etc/tattle.conf"], check=True)
    instance.run(["ln", "-s", "/root/test-ca.pem", "/root/ca-link.pem"], check=True)
    instance.write("/root/.aws/config", "[default]\nca_bundle = /root/ca-link.pem\n", 0o600)
    instance.hook()
    (entry,) = instance.eventbridge.wait_for(1)
    assert entry.raw["Source"] == "linked"


# What tattle writes


def test_what_is_written_is_roots_alone_whatever_the_callers_umask(instance: Instance) -> None:
    instance.eventbridge.set(fault="refuse")
    assert instance.hook(wrapper=LET_ANYBODY_READ).returncode == 0
    instance.syslog.wait_for("events wait in the spool")
    instance.write(f"{SPOOL}/rubbish", "")
    instance.syslog.wait_for("set aside")
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


# trusted(), where it decides


@pytest.fixture
def roots_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is root's up to /."""
    need_root()
    folder = Path("/var/lib/tattle-test")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o755)
    yield folder
    shutil.rmtree(folder)


def test_all_that_is_on_the_way_has_to_be_trusted(roots_folder: Path) -> None:
    (roots_folder / "a/b").mkdir(parents=True)
    file = roots_folder / "a/b/file"
    file.write_text("")
    assert trusted(str(file)) == str(file)
    for path in (file, file.parent, file.parent.parent, roots_folder):
        mode = stat.S_IMODE(path.stat().st_mode)
        for spoilt in (mode | 0o020, mode | 0o002):
            path.chmod(spoilt)
            with pytest.raises(TattleError, match=f"{path} "):
                trusted(str(file))
        path.chmod(mode)
        os.chown(path, ALICE, 0)
        with pytest.raises(TattleError, match=f"{path} "):
            trusted(str(file))
        os.chown(path, 0, ALICE)  # a group that can't write matters not
        assert trusted(str(file)) == str(file)
        os.chown(path, 0, 0)


def test_links_are_followed_and_what_they_name_has_to_be_trusted(roots_folder: Path) -> None:
    (roots_folder / "real/deep").mkdir(parents=True)
    (roots_folder / "real/deep/file").write_text("")
    (roots_folder / "real/back").symlink_to("../real/deep")
    (roots_folder / "link").symlink_to(roots_folder / "real/back")
    file = str(roots_folder / "link/file")
    assert os.path.realpath(trusted(file)) == str(roots_folder / "real/deep/file")
    for path in ("real/back", "link"):
        os.lchown(roots_folder / path, ALICE, 0)
        with pytest.raises(TattleError, match=path):
            trusted(file)
        os.lchown(roots_folder / path, 0, 0)
    (roots_folder / "real").chmod(0o777)
    with pytest.raises(TattleError, match="real "):
        trusted(file)


def test_a_sticky_folder_is_no_danger_to_what_is_roots(roots_folder: Path) -> None:
    roots_folder.chmod(0o1777)
    mine, hers = roots_folder / "mine", roots_folder / "hers"
    mine.write_text("")
    hers.write_text("")
    os.chown(hers, ALICE, 0)
    assert trusted(str(mine)) == str(mine)
    with pytest.raises(TattleError, match="hers"):
        trusted(str(hers))


@pytest.mark.parametrize("name", ["nothing", "nothing/below", "loop"])
def test_what_does_not_exist_or_never_ends_is_an_error_of_the_system(
    roots_folder: Path, name: str
) -> None:
    (roots_folder / "loop").symlink_to("loop")
    with pytest.raises((OSError, RecursionError)):
        trusted(str(roots_folder / name))


def test_a_private_folder_is_made_and_held_open(roots_folder: Path) -> None:
    before = os.umask(0o077)
    try:
        fd = private_folder(str(roots_folder / "new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
    (roots_folder / "new").rename(roots_folder / "moved")
    (roots_folder / "moved/file").write_text("")
    assert os.listdir(fd) == ["file"]
    os.close(fd)


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
