"""Another version put in place while the one before it is at work: nothing is lost, or held up."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from standins.instance import SPOOL, TATTLE, Instance
from support import SYSTEM_PYTHON, eventually, find_pythons, need_pythons, need_root, repacked

pytestmark = pytest.mark.root

CACHE = "/var/cache/tattle"
DELAY = 0.6  # seconds that a look takes
UPGRADES = 50
UPGRADE_SECONDS = 0.25
VERSIONS = 5  # in turns
LOGINS = 6
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}


@pytest.fixture
def box(instance: Instance) -> Instance:
    """With the version before installed and unpacked."""
    smoke_test(instance)
    instance.eventbridge.clear()
    return instance


@pytest.fixture
def next_version(artifact: Path, tmp_path: Path) -> Path:
    """Every module of ours lies elsewhere in it, and is longer."""
    repacked(
        artifact,
        tmp_path / "next",
        lambda name, content: b"# next\n" + content if "tattle/" in name else content,
    )
    return tmp_path / "next"


def smoke_test(box: Instance) -> None:
    done = box.run([TATTLE], env=LOGIN)
    assert (done.returncode, done.stderr) == (0, "")


def build(box: Instance) -> Path:
    """The folder of the one that is unpacked."""
    (found,) = (path for path in box.path(CACHE).iterdir() if not path.name.startswith("."))
    return found


def configure(box: Instance, source: str) -> None:
    """A new configuration has a deliverer load botocore's data anew."""
    box.write("/etc/tattle.conf", f"[tattle]\nsource = {source}\n")


class TestADeliverer:
    @pytest.fixture(autouse=True)
    def _at_work(self, box: Instance) -> None:
        box.hook(user="first")
        box.eventbridge.wait_for(1)

    def delivers(self, box: Instance, user: str) -> None:
        count = len(box.eventbridge.entries())
        assert box.hook(user=user).returncode == 0
        entry = box.eventbridge.wait_for(count + 1)[-1]
        assert entry.detail["username"] == user

    def test_goes_on_after_an_upgrade(self, box: Instance, next_version: Path) -> None:
        (deliverer,) = box.deliverers()
        box.install(next_version)
        self.delivers(box, "second")
        configure(box, "com.example")
        self.delivers(box, "third")
        assert [process.pid for process in box.deliverers()] == [deliverer.pid]
        assert box.log() == []

    def test_whose_build_an_upgrade_removes_begins_anew(
        self, box: Instance, next_version: Path
    ) -> None:
        before = build(box)
        box.install(next_version)
        smoke_test(box)
        assert build(box) != before
        configure(box, "com.example")
        self.delivers(box, "second")

    def test_that_runs_from_the_archive_does_so_too(
        self, box: Instance, next_version: Path
    ) -> None:
        """As one does that began anew in the middle of an upgrade."""
        box.kill_deliverers()
        shutil.rmtree(box.path(CACHE))
        box.popen(["env", "-i", TATTLE, "deliver", SPOOL, "again"])
        eventually(box.deliverers)
        self.delivers(box, "second")
        box.eventbridge.set(fault="refuse")
        assert box.hook(user="third").returncode == 0
        box.install(next_version)
        assert box.run([TATTLE, "--dry-run"], env=LOGIN).returncode == 0  # removes the other build
        box.eventbridge.set(fault=None)
        assert box.eventbridge.wait_for(3, timeout=20)[-1].detail["username"] == "third"

    def test_unpacks_again_what_somebody_removed(self, box: Instance) -> None:
        shutil.rmtree(box.path(CACHE))
        configure(box, "com.example")
        self.delivers(box, "second")
        assert build(box).exists()


def test_another_python_unpacks_for_itself(artifact: Path) -> None:
    """What Python compiles as it goes may be torn by a power cut, so nothing is left to compile."""
    need_root(*Instance.TOOLS)
    with Instance(artifact) as box:
        unpack_with_another_python(box)


def unpack_with_another_python(box: Instance) -> None:
    smoke_test(box)
    own = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print('%d.%d' % sys.version_info[:2])"])
    others = [path for version, path in find_pythons().items() if version != own.stdout.strip()]
    need_pythons(others, "other Python")
    box.replace_python(others[0])
    smoke_test(box)
    tag = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print(sys.implementation.cache_tag)"])
    (build,) = box.path(CACHE).iterdir()
    assert build.name.endswith(f"-{tag.stdout.strip()}")
    assert [*build.rglob("*.pyc")]
    assert [*build.rglob("*.py")] == []


@pytest.mark.parametrize("arguments", [(), ("--wait=20",)], ids=["", "--wait"])
@pytest.mark.parametrize(
    "path", [TATTLE, "/proc/self/fd/3"], ids=["as it opens the file", "as it reads it"]
)
def test_an_upgrade_in_the_middle_of_a_hook_holds_up_nothing(
    path: str, arguments: tuple[str, ...], instance: Instance, next_version: Path
) -> None:
    need_root("strace")
    shutil.rmtree(instance.path(CACHE), ignore_errors=True)  # or else it does not read the file
    delayed = ["-P", path, "-e", "trace=openat"]
    delayed += ["-e", f"inject=openat:delay_enter={DELAY * 1_000_000:.0f}:when=1"]
    upgrade = threading.Timer(DELAY / 2, instance.install, [next_version])
    upgrade.start()
    done = instance.hook(
        user="late",
        arguments=arguments,
        wrapper=["/usr/bin/strace", "-D", "-o", "/tmp/trace", *delayed],
    )
    upgrade.join()
    assert done.seconds > DELAY
    assert done.returncode == 0
    assert instance.eventbridge.wait_for(1)[0].detail["username"] == "late"
    assert instance.log() == []


@pytest.mark.parametrize("lock", [".", ".deliverer"], ids=["1.0", "1.1"])
def test_while_a_version_before_delivers_nobody_else_does(lock: str, box: Instance) -> None:
    """They lock the directory, or the file in it. 1.0 moves away what it does not know."""
    box.accept("waits")
    with locked(box.path(SPOOL) / lock), box.session() as session:
        for _ in range(LOGINS):
            assert session.hook().returncode == 0
            if lock == ".":
                remove_locks(box)
        eventually(lambda: len(box.processes(f"{TATTLE} deliver")) == (lock != "."))
        assert box.eventbridge.calls() == []
    if lock == ".":  # it takes up what comes while it delivers, so that nobody waits for its end
        assert box.hook().returncode == 0
    count = 1 + LOGINS + (lock == ".")
    box.eventbridge.wait_for(count, timeout=20)
    eventually(lambda: not box.records())
    assert len(box.eventbridge.entries()) == count


@pytest.mark.parametrize("lock", [".", ".deliverer"], ids=["1.0", "1.1"])
def test_no_ledger_begins_while_a_version_before_delivers(lock: str, box: Instance) -> None:
    """It would not hear of what that sends, and logind's sessions would be reported once more."""
    since = box.path(SPOOL) / "open/.since"
    assert box.hook().returncode == 0
    box.eventbridge.wait_for(1)
    eventually(lambda: not box.deliverers(), 60)
    remove_locks(box)
    box.run(["rm", "-rf", str(f"{SPOOL}/open")], check=True)
    if lock != ".":
        box.write(f"{SPOOL}/{lock}", "")
    with locked(box.path(SPOOL) / lock):
        assert box.run([TATTLE, "flush"]).returncode == 0
        assert not since.exists()
    assert box.run([TATTLE, "flush"]).returncode == 0
    assert since.exists()


def test_locks_that_are_removed_make_no_second_deliverer(box: Instance) -> None:
    box.eventbridge.set(delay=0.3)
    with box.session() as session:
        for _ in range(LOGINS):
            assert session.hook().returncode == 0
            remove_locks(box)
            time.sleep(0.2)
    box.eventbridge.wait_for(LOGINS, timeout=20)
    eventually(lambda: not box.records())
    assert len(box.eventbridge.entries()) == LOGINS
    assert box.eventbridge.most_in_progress() == 1
    eventually(lambda: len(box.processes(f"{TATTLE} deliver")) <= 2)


def test_a_build_that_1_0_runs_from_stays(box: Instance, next_version: Path) -> None:
    """It keeps this file locked, and can't unpack its own again."""
    complete = build(box) / ".complete"
    complete.touch()
    with locked(complete):
        box.install(next_version)
        assert box.run([TATTLE, "--dry-run"], env=LOGIN).returncode == 0
    assert complete.exists()
    shutil.rmtree(complete.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_locks(box: Instance) -> None:
    for name in (".deliverer", ".standby"):
        (box.path(SPOOL) / name).unlink(missing_ok=True)


@pytest.mark.slow
def test_fifty_upgrades_in_a_row_lose_nothing_and_no_hook_fails(
    box: Instance, artifact: Path, tmp_path: Path
) -> None:
    """While ten hooks a second run, and deliverers work."""
    versions = []
    for number in range(VERSIONS):
        versions.append(tmp_path / f"{number}")
        comment = b"# %d\n" % number * (number + 1)
        repacked(
            artifact,
            versions[-1],
            lambda name, content, comment=comment: (  # type: ignore[misc]
                comment + content if "tattle/" in name and name.endswith(".py") else content
            ),
        )
    ended = threading.Event()

    def upgrade() -> None:
        for number in range(UPGRADES):
            box.install(versions[number % VERSIONS])
            time.sleep(UPGRADE_SECONDS)
        ended.set()

    thread = threading.Thread(target=upgrade)
    thread.start()
    statuses: list[int] = []
    with box.session() as session:
        while not ended.is_set():
            statuses.append(session.hook(user=f"u{len(statuses)}").returncode)
            time.sleep(0.1)
        thread.join()
        statuses.append(session.hook(user=f"u{len(statuses)}").returncode)
    assert {*statuses} == {0}
    assert len(statuses) > UPGRADES / 2, "not under way"
    box.eventbridge.wait_for(len(statuses), timeout=90)
    assert box.arrived() == {f"u{number}": 1 for number in range(len(statuses))}


# A build that is damaged, or being removed, at the moment of a login


Damage = Callable[[Path], object]
SERVICE = "site-packages/botocore/data/events/2015-10-07/service-2.json"


def every(build: Path, pattern: str) -> list[Path]:
    return sorted(path for path in build.glob(pattern) if path.is_file())


def change(pattern: str, how: Callable[[Path], object]) -> Damage:
    """Do something to every file of that pattern."""
    return lambda build: [how(path) for path in every(build, pattern)]


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"\0\xffgarbage")


def with_another_magic_number(path: Path) -> None:
    path.write_bytes(b"\0\0\r\n" + path.read_bytes()[4:])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "all is empty, as a power cut may leave it": change("**/*", empty),
    "what is compiled is cut": change("**/*.pyc", cut),
    "what is compiled is another Python's": change("**/*.pyc", with_another_magic_number),
    "our modules are garbage": change("site-packages/tattle/**/*.py*", fill_with_garbage),
    "our modules are gone": change("site-packages/tattle/**/*.py*", Path.unlink),
    "a module is a folder": change("site-packages/tattle/*/**/deliver.*", become_a_folder),
    "a module of the hook's is gone": change("site-packages/tattle/login/hook.pyc", Path.unlink),
    "a module of botocore's is gone": change("site-packages/botocore/httpsession.pyc", Path.unlink),
    "a service's model is garbage": change(SERVICE, fill_with_garbage),
    "the regions are gone": change("site-packages/botocore/data/endpoints.json", Path.unlink),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_build_costs_no_event_and_is_replaced(box: Instance, damage: str) -> None:
    whole = {path.relative_to(build(box)) for path in every(build(box), "**/*.*")}
    DAMAGES[damage](forget_repair(box))
    with box.session() as session:
        assert session.hook(user="one").returncode == 0
        box.eventbridge.wait_for(1, timeout=60)
        assert all(x.message.startswith(f"damaged: {CACHE}/") for x in box.log()), box.log()
        eventually(lambda: not box.spool())
        box.kill_deliverers()
        box.syslog.clear()
        assert session.hook(user="two").returncode == 0
        box.eventbridge.wait_for(2)
    assert {path.relative_to(build(box)) for path in every(build(box), "**/*.*")} >= whole
    assert box.log() == []
    assert box.arrived() == {"one": 1, "two": 1}


def test_a_build_that_can_deliver_but_not_look_at_the_sessions_is_replaced(box: Instance) -> None:
    """It would deliver for ever, and what no hook reported stay unreported."""
    looks = forget_repair(box) / "site-packages/tattle/delivery/look.pyc"
    whole = looks.read_bytes()
    cut(looks)
    box.hook(user="one")
    box.syslog.wait_for("look.pyc: unpacking again")
    eventually(lambda: looks.exists() and looks.read_bytes() == whole)
    eventually(lambda: box.path(f"{SPOOL}/open/.looked").exists())
    assert len(box.log()) == 1
    assert box.arrived() == {"one": 1}


def test_a_standby_whose_build_is_gone_looks_at_the_sessions_all_the_same(box: Instance) -> None:
    for user in ("one", "two"):
        box.hook(user=user)
        eventually(lambda: not box.records())
    eventually(box.standbys)
    shutil.rmtree(build(box))  # as an upgrade does
    box.path(f"{SPOOL}/open/.looked").unlink()
    box.kill(*box.deliverers())
    eventually(lambda: box.path(f"{SPOOL}/open/.looked").exists())
    assert box.log() == []


def forget_repair(box: Instance) -> Path:
    """Have the build be one that has not been repaired in the last hour; its folder."""
    (build(box) / "repaired").unlink(missing_ok=True)
    return build(box)


@pytest.mark.parametrize("arguments", [[], ["check"]])
def test_a_shells_command_repairs_it_too(box: Instance, arguments: list[str]) -> None:
    (forget_repair(box) / SERVICE).unlink()
    done = box.run([TATTLE, *arguments], env={} if arguments else LOGIN)
    assert "defect" not in done.stdout + done.stderr
    assert box.log_with("service-2.json: unpacking again")
    assert (build(box) / SERVICE).exists()


def test_it_is_repaired_once_in_an_hour(box: Instance) -> None:
    """A disk that loses files at once would have it unpacked without end."""
    regions = "site-packages/botocore/data/endpoints.json"
    forget_repair(box)
    for delivered in range(2):
        box.kill_deliverers()
        (build(box) / regions).unlink()
        assert box.hook().returncode == 0
        if delivered == 0:
            box.eventbridge.wait_for(1, timeout=20)
    box.syslog.wait_for("events wait in the spool", timeout=20)
    assert len(box.log_with(": unpacking again")) == 1
    os.utime(build(box) / "repaired", (time.time() - 3601,) * 2)
    box.kill_deliverers()
    assert box.hook().returncode == 0
    box.eventbridge.wait_for(3, timeout=20)


def test_what_a_profile_needs_and_is_not_there_is_no_damage(box: Instance) -> None:
    sso = "sso_start_url = https://x\nsso_region = us-east-1\nsso_account_id = 1\n"
    box.write("/root/.aws/config", f"[default]\n{sso}sso_role_name = r\n")
    assert box.hook().returncode == 0
    line = box.syslog.wait_for("events wait in the spool", timeout=20)
    assert "configuration" in line.message
    assert not box.log_with("unpacking again")
