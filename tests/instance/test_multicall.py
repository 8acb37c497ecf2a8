"""/usr/bin/env as Amazon Linux 2023 and RHEL's minimal images have it: a script of one line,
`#!/usr/bin/coreutils --coreutils-prog-shebang=env`, whose interpreter is every tool of coreutils.

Debian has no such build. The interpreter here does what that one does with its arguments.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from standins.instance import TATTLE, Instance
from support import need, need_root

pytestmark = pytest.mark.root

ENV = "/usr/bin/env"
MULTICALL = "/usr/local/bin/multicall"
REAL_ENV = "/usr/local/bin/real-env"
SCRIPT = f"#!{MULTICALL} --coreutils-prog-shebang=env\n"
# coreutils' src/coreutils.c: the script's path becomes the tool's argv[0]
SOURCE = f"""
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {{
    if (argc < 3 || strcmp(argv[1], "--coreutils-prog-shebang=env") != 0)
        return 99;
    execv("{REAL_ENV}", argv + 2);
    return 98;
}}
"""
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}


@pytest.fixture(scope="module")
def box(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    need(shutil.which("cc"), "needs a C compiler")
    folder = tmp_path_factory.mktemp("multicall")
    (folder / "multicall.c").write_text(SOURCE)
    subprocess.run(["cc", "-o", "multicall", "multicall.c"], cwd=folder, check=True)
    with Instance(artifact) as box:
        box.write(MULTICALL, (folder / "multicall").read_bytes(), 0o755)
        box.write(REAL_ENV, box.path(ENV).read_bytes(), 0o755)
        box.write("/usr/local/bin/env", SCRIPT, 0o755)
        box.run(["mount", "--bind", "/usr/local/bin/env", ENV], check=True)
        box.keep()
        yield box


def test_such_an_env_is_there(box: Instance) -> None:
    assert box.read(ENV) == SCRIPT
    assert box.run([ENV, "-S", "-u A printenv B"], env={"B": "c"}).stdout == "c\n"
    box.path(REAL_ENV).rename(box.path(f"{REAL_ENV}.away"))
    try:
        assert box.hook().returncode == 98
    finally:
        box.path(f"{REAL_ENV}.away").rename(box.path(REAL_ENV))


def test_the_smoke_test_works_and_a_login_and_its_logout_arrive(box: Instance) -> None:
    box.eventbridge.clear()
    done = box.run([TATTLE], env=LOGIN)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert box.ssh("alice", "true").returncode == 0
    states = [entry.detail["session"] for entry in box.eventbridge.wait_for(3)]
    assert states == ["opened", "opened", "closed"]
    assert box.log() == []
