"""What an ordinary user can try by `su`, whose hook keeps the caller's folder, limits and real user id.

Under a limit that leaves Python too little memory the hook starts itself again. Started by a name
without a slash, Python looks for itself in PATH and for pyvenv.cfg in the current folder, -I or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pythons import replace_python

from standins.instance import TATTLE, Instance
from support import find_pythons, need_root

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTHONS = find_pythons()
EVIL = "/home/alice/evil"  # alice's folder, from which she runs su
OWNED = "/tmp/owned"  # her code writes there when root runs it
TRAP = f"""\
import posix
if posix.geteuid() == 0:
    posix.close(posix.open({OWNED!r}, posix.O_CREAT))
"""
# Upstream's stack, as far as it concerns the hook: its pam_limits leaves RLIMIT_DATA alone.
SU_STACK = f"""\
auth     sufficient pam_permit.so
account  required   pam_permit.so
session  required   pam_permit.so
session  optional   pam_exec.so {TATTLE}
"""
# One hook for each limit (kB): from too little for Python to start to enough for all that the hook
# does. Under some Python itself spins as it starts: that is not what is looked at here.
SWEEP = f"""
    n=2000
    while [ $n -lt 12000 ] && [ ! -e {OWNED} ]; do
        (ulimit -S -d $n; exec timeout --signal=KILL 1 "$@")
        n=$((n + 50))
    done
"""


@pytest.fixture(scope="module", params=PYTHONS)
def box(request: pytest.FixtureRequest, artifact: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    version: str = request.param
    with Instance(artifact) as box:
        replace_python(box, PYTHONS[version])
        box.write("/etc/pam.d/su", SU_STACK)
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


def test_a_folder_with_a_pyvenv_cfg_is_not_where_root_takes_its_code_from(box: Instance) -> None:
    box.path(OWNED).unlink(missing_ok=True)
    with box.locked():  # the hooks are what is attacked, not their deliverers
        done = box.run(
            ["/bin/sh", "-c", f"cd {EVIL}\n{SWEEP}", "-", "su", "ubuntu", "-c", "true"],
            user="alice",
            timeout=120,
        )
        assert box.spool(), done
    assert not box.path(OWNED).exists()


def test_path_does_not_say_where_root_takes_its_code_from(box: Instance) -> None:
    """As pam_env has it where a user's own variables are let in."""
    box.path(OWNED).unlink(missing_ok=True)
    box.write("/etc/pam.d/su", f"session required pam_env.so user_readenv=1\n{SU_STACK}")
    box.write("/home/alice/.pam_environment", f"PATH DEFAULT={EVIL}/bin\n", owner="alice")
    with box.locked():
        done = box.run(
            ["/bin/sh", "-c", f"cd /\n{SWEEP}", "-", "su", "alice", "-c", "true"],
            user="alice",
            timeout=120,
        )
        assert box.spool(), done
    assert not box.path(OWNED).exists()
