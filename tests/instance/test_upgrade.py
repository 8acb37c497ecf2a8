"""Another version put in place while the one before it is at work: nothing is lost, or held up."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pythons import replace_python

from standins.instance import TATTLE, Instance
from support import SYSTEM_PYTHON, find_pythons, need, need_root, repacked

pytestmark = pytest.mark.root

CACHE = "/var/cache/tattle"
DELAY = 1.0  # seconds that a look takes


@pytest.fixture
def box(artifact: Path) -> Iterator[Instance]:
    """With the version before installed."""
    need_root(*Instance.TOOLS)
    with Instance(artifact) as made:
        yield made


@pytest.fixture
def next_version(artifact: Path, tmp_path: Path) -> Path:
    """Every file of ours lies elsewhere in it, or is longer."""
    repacked(
        artifact,
        tmp_path / "next",
        lambda name, content: b"# next\n" + content if "tattle/" in name else content,
    )
    return tmp_path / "next"


def smoke_test(box: Instance) -> None:
    login = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
    assert box.run([TATTLE], env=login).returncode == 0


def builds(box: Instance) -> int:
    """How many are unpacked."""
    return len(list(box.path(CACHE).glob("*/.complete")))


def configure(box: Instance, source: str) -> None:
    """A new configuration has a deliverer load botocore's data anew."""
    box.write("/etc/tattle.conf", f"[tattle]\nsource = {source}\n")


class TestADeliverer:
    @pytest.fixture(autouse=True)
    def _at_work(self, box: Instance) -> None:
        box.hook(user="first")
        box.eventbridge.wait_for(1)

    def delivers(self, box: Instance, user: str) -> None:
        (deliverer,) = box.deliverers()
        count = len(box.eventbridge.entries())
        assert box.hook(user=user).returncode == 0
        entry = box.eventbridge.wait_for(count + 1, timeout=4)[-1]
        assert entry.detail["username"] == user
        assert [process.pid for process in box.deliverers()] == [deliverer.pid]
        assert box.log() == []

    def test_goes_on_after_an_upgrade(self, box: Instance, next_version: Path) -> None:
        box.install(next_version)
        self.delivers(box, "second")
        configure(box, "com.example")
        self.delivers(box, "third")

    def test_keeps_what_it_unpacked_as_long_as_it_lives(
        self, box: Instance, artifact: Path, next_version: Path
    ) -> None:
        box.install(next_version)
        smoke_test(box)
        assert builds(box) == 2
        configure(box, "com.example")
        self.delivers(box, "second")
        box.kill_deliverers()
        smoke_test(box)
        assert builds(box) == 2  # what is there already removes nothing
        shutil.rmtree(next(iter(box.path(CACHE).iterdir())))
        box.install(artifact)
        smoke_test(box)
        box.install(next_version)
        smoke_test(box)
        assert builds(box) == 1

    def test_unpacks_again_what_somebody_removed(self, box: Instance) -> None:
        shutil.rmtree(box.path(CACHE))
        configure(box, "com.example")
        self.delivers(box, "second")
        assert builds(box) == 1


def test_another_python_unpacks_for_itself(box: Instance) -> None:
    """What Python compiles as it goes may be torn by a power cut, so nothing is left to compile."""
    box.hook(user="first")
    box.eventbridge.wait_for(1)
    box.kill_deliverers()
    own = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print('%d.%d' % sys.version_info[:2])"])
    others = [path for version, path in find_pythons().items() if version != own.stdout.strip()]
    need(others, "needs another Python")
    replace_python(box, others[0])
    box.hook(user="second")
    box.eventbridge.wait_for(2)
    tag = box.run([SYSTEM_PYTHON, "-ISc", "import sys; print(sys.implementation.cache_tag)"])
    (build,) = box.path(CACHE).iterdir()
    compiled = [path.suffixes[0] for path in build.rglob("*.pyc")]
    assert {*compiled} == {f".{tag.stdout.strip()}"}
    assert len(compiled) == len(list(build.rglob("*.py")))


@pytest.mark.parametrize("arguments", [(), ("--wait",)], ids=["", "--wait"])
@pytest.mark.parametrize("look", [4, 5, 6, 7])
def test_a_hook_that_finds_another_file_at_its_next_look_begins_anew(
    look: int, arguments: tuple[str, ...], box: Instance, next_version: Path
) -> None:
    """Python opens the file for each module. (The first three looks are Python's own, at the
    directory and at `__main__.py`, and no file of ours can do anything about them.)"""
    need_root("strace")
    delayed = ["-P", TATTLE, "-e", "trace=openat"]
    delayed += ["-e", f"inject=openat:delay_enter={DELAY * 1_000_000:.0f}:when={look}"]
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
