"""Branch coverage of src/tattle by all tests, whichever process runs it. By hand, as root:
`./build.sh coverage [ARGUMENT …]`; arguments go to pytest.

The artifact runs with -IS, from a zip, in namespaces of its own, partly forked and ended by
os._exit or SIGKILL: no environment variable and no .pth file reaches it. So the tests run in a copy
of the checkout whose artifact differs in one file: its front door starts coverage, then opens the
real one. What coverage needs lies where a throwaway instance sees it, too. Tests that measure time
or memory, count what is opened, or look into the archive may fail here, and nothing else follows
from that.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import coverage

from support import ARTIFACT, copy_checkout, repacked

PLACE = "/opt"  # which instances show as it is
NOT_HERE = ("test_build", "test_fleet", "test_readme", "test_standins")  # nothing of src/tattle
NO_WALK = "not killed_at and not killed_on and not error_at_any"  # coverage makes them take hours
TIMEOUT = 600  # seconds for a test: all of them are slower here

SETTINGS = """\
[run]
branch = true
parallel = true
data_file = {work}/data/coverage
patch = _exit
disable_warnings = no-data-collected, module-not-measured, couldnt-parse
include =
    */tattle/tattle/*
    */site-packages/tattle/*
    */src/tattle/*
[paths]
tattle =
    {root}/src/tattle
    */src/tattle
    */tattle/tattle
    */site-packages/tattle
[report]
show_missing = true
skip_covered = false
exclude_also =
    if TYPE_CHECKING:
    \\.\\.\\.$
    if __name__ == "__main__":
"""

BEGIN = """\
def begin():
    import atexit
    import time

    import coverage

    coverage.Coverage(config_file={settings!r}).start()
    atexit.register(lambda: coverage.Coverage.current().save())
    sleep, saved = time.sleep, [0.0]

    def sleep_and_save(seconds):  # for those whom a test kills
        if time.monotonic() - saved[0] > 0.2:
            coverage.Coverage.current().save()
            saved[0] = time.monotonic()
        sleep(seconds)

    time.sleep = sleep_and_save


begin()
"""

FRONT_DOOR = """\
import sys

sys.path.append({library!r})
try:
    if sys.version_info[:2] == {version}:  # that the library was installed for
        exec(compile({begin!r}, "<begin>", "exec"), {{}})
except Exception:  # no memory, no descriptor, …: a test's doing
    pass
sys.path.remove({library!r})
__file__ = __loader__.archive + "/tattle/__main__.py"
exec(__loader__.get_code("tattle/__main__"), globals())
"""


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a mount in it: instances are read-only but for mounts."""
    with tempfile.TemporaryDirectory(prefix="tattle-coverage-", dir=PLACE) as folder:
        work = Path(folder)
        work.chmod(0o755)
        data = work / "data"
        data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", data], check=True)
        try:
            yield work
        finally:
            subprocess.run(["umount", "--lazy", data], check=True)


def main() -> int:
    with workplace() as work:
        tree = work / "tree"
        copy_checkout(tree)
        shutil.copytree(Path(coverage.__file__).parent, work / "library" / "coverage")
        settings = work / "settings"
        settings.write_text(SETTINGS.format(work=work, root=tree))
        (tree / "dist").mkdir()
        begin = BEGIN.format(settings=str(settings))
        front_door = FRONT_DOOR.format(
            library=str(work / "library"), begin=begin, version=sys.version_info[:2]
        )
        instrumented = tree / "dist" / "tattle"  # the real front door is in its package anyway
        repacked(
            ARTIFACT,
            instrumented,
            lambda name, content: front_door.encode() if name == "__main__.py" else content,
        )
        run = [sys.executable, "-m", "coverage"]
        ignored = [f"--ignore=tests/{name}.py" for name in NOT_HERE]
        pytest = [
            "-m",
            "pytest",
            "-q",
            "--tb=no",
            "--continue-on-collection-errors",
            f"--timeout={TIMEOUT}",
            *("-k", NO_WALK),
            *ignored,
            *sys.argv[1:],
        ]
        subprocess.run([*run, "run", f"--rcfile={settings}", *pytest], cwd=tree)
        # What a process that was killed was writing just then is no data, and it says so.
        quiet = subprocess.DEVNULL
        combine = [*run, "combine", "-q", f"--rcfile={settings}"]
        subprocess.run(combine, cwd=tree, stderr=quiet, check=True)
        return subprocess.run([*run, "report", f"--rcfile={settings}"], cwd=tree).returncode


if __name__ == "__main__":
    sys.exit(main())
