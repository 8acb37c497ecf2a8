"""Branch coverage of src/tattle by all tests, whichever process runs it. By hand, as root:
`./build.sh coverage [ARGUMENT …]`; arguments go to pytest.

The artifact runs with -IS, from a zip, in namespaces of its own, and ends by os._exit or SIGKILL:
no environment variable and no .pth file reaches it. So the tests run in a copy of the checkout
whose artifact differs in one file: its entry point starts coverage first. What coverage needs lies
where a throwaway instance sees it, too. Tests that measure time or memory, count what is opened, or
look into the archive may fail here, and nothing else follows from that.
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

from support import ARTIFACT, copy_checkout, mount_own_cache, repacked

PLACE = "/opt"  # which instances show as it is
# They run nothing of src/tattle.
NOT_HERE = ("artifact/test_build", "readme/test_readme", "unit/test_standins")
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
    */site-packages/tattle/*
    */src/tattle/*
[paths]
tattle =
    {root}/src/tattle
    */src/tattle
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
    import os
    import posix
    import signal
    import time

    import coverage

    coverage.Coverage(config_file={settings!r}).start()
    posix._exit = os._exit  # the hook's; coverage has patched the other
    atexit.register(lambda: coverage.Coverage.current().save())
    saved = [0.0]

    def saving(sleep):  # for those whom a test kills
        def save_and_sleep(*arguments):
            if time.monotonic() - saved[0] > 0.2:
                coverage.Coverage.current().save()
                saved[0] = time.monotonic()
            return sleep(*arguments)

        return save_and_sleep

    time.sleep, signal.sigtimedwait = saving(time.sleep), saving(signal.sigtimedwait)


begin()
"""

BEFORE_THE_ENTRY_POINT = """\
import sys

sys.path.append({library!r})
try:
    if sys.version_info[:2] == {version}:  # that the library was installed for
        exec(compile({begin!r}, "<begin>", "exec"), {{}})
except Exception:  # no memory, no descriptor, …: a test's doing
    pass
sys.path.remove({library!r})
"""


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a mount in it that is not read-only in instances (see instance_setup.sh)."""
    mount_own_cache()  # in namespaces of one's own: the machine sees no mount
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
        before = BEFORE_THE_ENTRY_POINT.format(
            library=str(work / "library"), begin=begin, version=sys.version_info[:2]
        )
        instrumented = tree / "dist" / "tattle"
        repacked(
            ARTIFACT,
            instrumented,
            lambda name, content: before.encode() * (name == "__main__.py") + content,
        )
        run = [sys.executable, "-m", "coverage"]
        rcfile = f"--rcfile={settings}"
        options = ["-q", "--tb=no", "--continue-on-collection-errors", f"--timeout={TIMEOUT}"]
        options += ["-k", NO_WALK, *(f"--ignore=tests/{name}.py" for name in NOT_HERE)]
        tests = [*run, "run", rcfile, "-m", "pytest", *options, *sys.argv[1:]]
        subprocess.run(tests, cwd=tree)
        # What a process that was killed was writing just then is no data, and it says so.
        combine = [*run, "combine", "-q", rcfile]
        subprocess.run(combine, cwd=tree, stderr=subprocess.DEVNULL, check=True)
        return subprocess.run([*run, "report", rcfile], cwd=tree).returncode


if __name__ == "__main__":
    sys.exit(main())
