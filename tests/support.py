"""What fixtures and tests share: what a test needs of the machine, and a clean environment."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import io
import json
import os
import pwd
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from standins import confinement
from standins.eventbridge import Entry

ROOT = Path(__file__).resolve().parents[1]
ARTIFACT = ROOT / "dist" / "tattle"
SYSTEM_PYTHON = "/usr/bin/python3"  # what the artifact's shebang names

CLONE_NEWNS = 0x00020000  # linux/sched.h
OLDEST_PYTHON = (3, 9)
NEWEST_PYTHON = (3, 15)
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


def need(condition: object, reason: str) -> None:
    """Skip the test unless the condition holds; where nothing may be skipped (CI=true), fail it."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needed here: {reason}")
    pytest.skip(reason)


def applies(condition: object, reason: str) -> None:
    """Skip the test unless the condition holds, also where nothing may be skipped: it is about what
    this machine can't have."""
    if not condition:
        pytest.skip(f"does not apply: {reason}")


def need_pythons(condition: object, reason: str) -> None:
    """As need(), where there can be any Python; a distribution mostly has but one."""
    if PYENV.is_dir():
        need(condition, f"needs {reason}")
    applies(condition, f"no {reason} here, and no pyenv")


def need_root(*tools: str) -> None:
    """Skip the test unless it is run by root, who may have namespaces here, and those commands are
    there."""
    missing = confinement.missing()
    need(not missing, f"needs {missing}")
    for tool in tools:
        need(shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin"), f"needs {tool}")


def clean_environment(home: Path) -> dict[str, str]:
    """An environment for a child process that holds nothing of this machine's: no AWS_*, *_PROXY,
    SSL_*, PYTHON*; AWS's files are looked for in `home`, where there are none."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "AWS_CONFIG_FILE": str(home / ".aws" / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / ".aws" / "credentials"),
    }


def is_the_default_event(
    entry: Entry, username: str, remote_host: str, session: str, began: float
) -> bool:
    """Whether an entry is, to the byte, what tattle sends where nothing is configured. Else says
    so, by AssertionError."""
    entry_but_time = {name: value for name, value in entry.raw.items() if name != "Time"}
    assert entry_but_time == {
        "Source": "com.unbounce.tattle",
        "DetailType": "SSH connection event detected",
        "Resources": ["arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"],
        "Detail": f'{{"username": "{username}", "remote_host": "{remote_host}", '
        f'"session": "{session}"}}',
    }
    assert int(began) <= entry.raw["Time"] <= time.time()
    return True


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds; AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@contextmanager
def nothing_left_in_the_cache() -> Iterator[None]:
    """Remove what tattle unpacks for this user, unless it was there before. OSError where root's
    belongs to an installed tattle: unpacking would remove the build that it runs from."""
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    cache = Path("/var/cache/tattle") if os.geteuid() == 0 else home / ".cache/tattle"
    if os.geteuid() == 0 and cache.exists():
        raise FileExistsError(f"root's {cache} is there, and is not to be touched: be another user")
    made = [folder for folder in (cache, cache.parent) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cgroup(controller: str) -> Iterator[Path]:
    """A cgroup of this machine's with that controller, of version 1 or 2, while entered."""
    folder = Path(f"/sys/fs/cgroup/{controller}")
    folder = (folder if folder.is_dir() else folder.parent) / f"tattle-{os.getpid()}"
    with suppress(OSError):
        folder.mkdir()
    try:
        need([*folder.glob(f"{controller}.*")], f"needs a cgroup with the controller {controller}")
        yield folder
    finally:
        if folder.exists():
            eventually(lambda: not (folder / "cgroup.procs").read_text())
            folder.rmdir()


def mount_own_cache() -> None:
    """Give this process, and what it starts, a /var/cache of its own, where it may have one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not confinement.missing() and libc.unshare(CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/cache"], check=True
        )


def copy_checkout(target: Path) -> None:
    """Copy the working tree, as a clone with the uncommitted changes would be."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(names).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name, follow_symlinks=False)


def repacked(artifact: Path, to: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write the artifact with changed files: change is given each one's name and content. It is a
    build of its own then."""
    content = artifact.read_bytes()
    begin = content.index(b"PK\3\4")
    first_line = content[:begin]
    build = hashlib.sha256(str(to).encode()).hexdigest()
    made = io.BytesIO()
    with zipfile.ZipFile(artifact) as old, zipfile.ZipFile(made, "w") as new:
        build_id = json.loads(old.read("environment.json"))["build_id"]
        for info in old.infolist():
            file = change(info.filename, old.read(info))
            if info.filename in ("__main__.py", "environment.json"):
                file = file.replace(build_id.encode(), build.encode())
            if info.filename == "__main__.py":  # the first line knows its length, of four digits
                assert 1000 <= len(file) <= 9999
                first_line = re.sub(rb"read\(\d{4}\)", b"read(%d)" % len(file), first_line)
            new.writestr(info, file)
    to.write_bytes(first_line + made.getvalue())
    to.chmod(0o755)


def changed(artifact: Path, to: Path, pattern: str, replacement: str) -> None:
    """Write the artifact with one line of ours changed, wherever in the package that is."""
    found = []

    def change(name: str, content: bytes) -> bytes:
        if "tattle/" in name:
            text, count = re.subn(pattern, replacement, content.decode(), flags=re.M)
            found.extend([name] * count)
            return text.encode()
        return content

    repacked(artifact, to, change)
    assert len(found) == 1, f"{pattern} is in {found}"


def find_pythons() -> dict[str, str]:
    """The interpreters on this machine that tattle is to run under: "3.9" → path, the oldest first.
    Looked for in /usr/bin, in pyenv's versions and on the PATH."""
    folders = ["/usr/bin", "/usr/local/bin", *os.environ.get("PATH", "").split(os.pathsep)]
    candidates = [path for folder in folders for path in sorted(Path(folder).glob("python3*"))]
    candidates += sorted(PYENV.glob("versions/*/bin/python3"))
    found: dict[tuple[int, int], str] = {}
    for path in candidates:
        version = _version(path)
        if version and OLDEST_PYTHON <= version <= NEWEST_PYTHON:
            found.setdefault(version, str(path))
    return {f"{major}.{minor}": path for (major, minor), path in sorted(found.items())}


def _version(python: Path) -> tuple[int, int] | None:
    """The interpreter's version; None if it isn't one, or a shim that has none behind it."""
    if not re.fullmatch(r"python3(\.\d+)?", python.name) or "shims" in python.parts:
        return None
    probe = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-IS", "-c", probe], capture_output=True, timeout=20)
        major, minor = map(int, done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return major, minor


def hcl(text: str) -> Any:
    """What python-hcl2 reads, without the quotes around strings and its own marks."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {plain(key): plain(one) for key, one in node.items() if key != "__is_block__"}
        if isinstance(node, list):
            return [plain(child) for child in node]
        if isinstance(node, str) and node[:1] == node[-1:] == '"':
            return json.loads(node)
        return node

    return plain(importlib.import_module("hcl2").loads(text))
