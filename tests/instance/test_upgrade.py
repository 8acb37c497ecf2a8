"""Another version put in place while the one before it is at work: nothing is lost, or held up."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standins.instance import TATTLE, Instance
from support import SYSTEM_PYTHON, eventually, find_pythons, need, need_root, repacked

pytestmark = pytest.mark.root

CACHE = "/var/cache/tattle"
DELAY = 1.0  # seconds that a look takes
UPGRADES = 50
UPGRADE_SECONDS = 0.4
VERSIONS = 5  # in turns
REMOVALS = 6


@pytest.fixture
def box(artifact: Path) -> Iterator[Instance]:
    """With the version before installed."""
    need_root(*Instance.TOOLS)
    with Instance(artifact) as made:
        yield made


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
    login = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
    assert box.run([TATTLE], env=login).returncode == 0


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

    def test_unpacks_again_what_somebody_removed(self, box: Instance) -> None:
        shutil.rmtree(box.path(CACHE))
        configure(box, "com.example")
        self.delivers(box, "second")
        assert build(box).exists()


def test_another_python_unpacks_for_itself(box: Instance) -> None:
    """What Python compiles as it goes may be torn by a power cut, so nothing is left to compile."""
    box.hook(user="first")
    box.eventbridge.wait_for(1)
    box.kill_deliverers()
    own = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print('%d.%d' % sys.version_info[:2])"])
    others = [path for version, path in find_pythons().items() if version != own.stdout.strip()]
    need(others, "needs another Python")
    box.replace_python(others[0])
    box.hook(user="second")
    box.eventbridge.wait_for(2)
    tag = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print(sys.implementation.cache_tag)"])
    (build,) = box.path(CACHE).iterdir()
    compiled = [path.suffixes[0] for path in build.rglob("*.pyc")]
    assert {*compiled} == {f".{tag.stdout.strip()}"}
    assert len(compiled) == len(list(build.rglob("*.py")))


@pytest.mark.parametrize("arguments", [(), ("--wait=20",)], ids=["", "--wait"])
@pytest.mark.parametrize(
    "path", [TATTLE, "/proc/self/fd/3"], ids=["as it opens the file", "as it reads it"]
)
def test_an_upgrade_in_the_middle_of_a_hook_holds_up_nothing(
    path: str, arguments: tuple[str, ...], box: Instance, next_version: Path
) -> None:
    need_root("strace")
    delayed = ["-P", path, "-e", "trace=openat"]
    delayed += ["-e", f"inject=openat:delay_enter={DELAY * 1_000_000:.0f}:when=1"]
    upgrade = threading.Timer(DELAY / 2, box.install, [next_version])
    upgrade.start()
    done = box.hook(
        user="late",
        arguments=arguments,
        wrapper=["/usr/bin/strace", "-D", "-o", "/tmp/trace", *delayed],
    )
    upgrade.join()
    assert done.seconds > DELAY
    assert done.returncode == 0
    assert box.eventbridge.wait_for(1)[0].detail["username"] == "late"
    assert box.log() == []


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
    assert len(statuses) > UPGRADES
    box.eventbridge.wait_for(len(statuses), timeout=90)
    users = Counter(entry.detail["username"] for entry in box.eventbridge.entries())
    assert users == {f"u{number}": 1 for number in range(len(statuses))}


# A build that is damaged, or being removed, at the moment of a login


def every(box: Instance, pattern: str) -> list[Path]:
    return sorted(path for path in build(box).glob(pattern) if path.is_file())


def remove_every_other_file(box: Instance) -> None:
    for path in every(box, "**/*")[::2]:
        path.unlink()


def remove_all_modules(box: Instance) -> None:
    shutil.rmtree(build(box) / "site-packages")


def remove_botocores_data(box: Instance) -> None:
    shutil.rmtree(build(box) / "site-packages/botocore/data")


def empty_all_files(box: Instance) -> None:
    """As a power cut may leave it, on file systems that write names before contents."""
    for path in every(box, "**/*"):
        os.truncate(path, 0)


def cut_what_is_compiled(box: Instance) -> None:
    for path in every(box, "**/*.pyc"):
        os.truncate(path, path.stat().st_size // 2)


def cut_the_hook(box: Instance) -> None:
    for path in every(box, "site-packages/tattle/login/**/hook.*"):
        os.truncate(path, path.stat().st_size // 2)


def put_rubbish_into_the_front(box: Instance) -> None:
    for path in every(box, "site-packages/tattle/**/*.py*"):
        path.write_bytes(b"\0\xffrubbish")


def put_a_folder_in_a_modules_place(box: Instance) -> None:
    for path in every(box, "site-packages/tattle/delivery/**/deliver.*"):
        path.unlink()
        path.mkdir()


DAMAGES: list[Callable[[Instance], None]] = [
    *(remove_every_other_file, remove_all_modules, remove_botocores_data, empty_all_files),
    *(cut_what_is_compiled, cut_the_hook, put_rubbish_into_the_front),
    put_a_folder_in_a_modules_place,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_build_costs_no_event_and_is_replaced(
    box: Instance, artifact: Path, damage: Callable[[Instance], None]
) -> None:
    smoke_test(box)
    whole = {path.relative_to(build(box)) for path in every(box, "**/*.*")}
    damage(box)
    box.eventbridge.clear()
    with box.session() as session:
        assert session.hook(user="one").returncode == 0
        box.eventbridge.wait_for(1, timeout=60)
        eventually(lambda: not box.spool())
        box.kill_deliverers()
        box.syslog.clear()
        assert session.hook(user="two").returncode == 0
        box.eventbridge.wait_for(2)
    assert {path.relative_to(build(box)) for path in every(box, "**/*.*")} >= whole
    assert box.log() == []
    assert [detail["username"] for detail in box.eventbridge.details()] == ["one", "two"]


@pytest.mark.slow
def test_a_build_that_is_being_removed_costs_no_event(box: Instance) -> None:
    users = []
    with box.session() as session:
        for number in range(REMOVALS):
            smoke_test(box)
            removal = threading.Thread(
                target=shutil.rmtree, args=[build(box)], kwargs={"ignore_errors": True}
            )
            removal.start()
            for half in "ab":
                users.append(f"{number}{half}")
                assert session.hook(user=users[-1]).returncode == 0
                time.sleep(0.005)
            removal.join()
            eventually(lambda: {*users} <= arrived(box), 60)
            box.kill_deliverers()


def arrived(box: Instance) -> set[str]:
    return {detail["username"] for detail in box.eventbridge.details()}
