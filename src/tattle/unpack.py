"""Puts botocore and tattle, compiled, where Python finds them: in /var/cache, once for each build.

botocore reads files beside its modules, so it can't run from the archive. Never on the login's
path: this is the deliverer's and the command line's business.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import importlib
import json
import os
import pwd
import py_compile
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from zipimport import zipimporter

import tattle
from tattle.errors import TattleError
from tattle.trust import private_folder

CACHES = ("/var/cache/tattle", "/run/tattle")  # root's; the latter where /var is full
FRESH_SECONDS = 3600  # what was unpacked so lately is not unpacked again: that did not help


def from_archive() -> bool:
    """Tell whether tattle runs from the archive, not from what is unpacked or installed."""
    return isinstance(tattle.__loader__, zipimporter)


def unpack() -> None:
    """Make botocore importable. Raises TattleError if there is no place to unpack it to."""
    if from_archive():
        sys.path.insert(0, str(_unpacked(_archive())))
        importlib.invalidate_caches()  # the front door looked there, and found nothing


def unpack_again() -> bool:
    """Replace the unpacked build, which is damaged or was removed; then it pays to begin anew.

    False if it has been unpacked just now: that did not help. Raises TattleError if there is no
    place to unpack to.
    """
    archive = _archive()
    for cache in _caches():
        build = cache / _build_name(archive)
        with contextlib.suppress(FileNotFoundError):
            fresh = time.time() - build.stat().st_mtime < FRESH_SECONDS
            if from_archive() or build in Path(tattle.__path__[0]).parents:
                if fresh:
                    return False
                shutil.rmtree(build, ignore_errors=True)
    _unpacked(archive)
    return True


def _archive() -> zipfile.ZipFile:
    path = sys.argv[0]
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        fault = f"can't read {path}: {error}"
        raise TattleError(fault, os.EX_UNAVAILABLE, "install tattle again") from error


def _build_name(archive: zipfile.ZipFile) -> str:
    """Return the name of this build's folder for this Python; the front door looks there, too."""
    build_id = json.loads(archive.read("environment.json"))["build_id"]
    return f"{build_id}-{sys.implementation.cache_tag}"


def _caches() -> list[Path]:
    """Return the folders to unpack to, best first. No environment variable has a say in it."""
    if os.geteuid() == 0:
        return [Path(path) for path in CACHES]
    try:
        return [Path(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "tattle")]
    except KeyError:
        fault = f"can't unpack botocore: user {os.geteuid()} has no home"
        raise TattleError(fault, os.EX_UNAVAILABLE, "run it as a user with a home") from None


def _unpacked(archive: zipfile.ZipFile) -> Path:
    """Return the site-packages of the archive's build, unpacked whole and on disk."""
    faults = []
    for cache in _caches():
        build = cache / _build_name(archive)
        try:
            if os.geteuid() != 0:
                cache.parent.mkdir(0o700, exist_ok=True)  # ~/.cache
            folder = private_folder(str(cache))
            try:
                if not build.exists():
                    fcntl.flock(folder, fcntl.LOCK_EX)
                    if not build.exists():
                        _unpack(archive, build)
                        os.fsync(folder)
            finally:
                os.close(folder)
        except (OSError, TattleError) as error:
            faults.append(f"{cache}: {error}")
        else:
            return build / "site-packages"
    fault = f"can't unpack botocore: {'; '.join(faults)}"
    raise TattleError(fault, os.EX_UNAVAILABLE, f"make room or repair it: df {CACHES[0]}")


def _unpack(archive: zipfile.ZipFile, build: Path) -> None:
    """Unpack and compile under another name, have it on disk, and only then give it its name.

    Then remove what other builds left. Who still runs one of them and misses something unpacks its
    own again.
    """
    new = build.with_name(f".{build.name}")
    shutil.rmtree(new, ignore_errors=True)  # a killed process left it
    names = [name for name in archive.namelist() if name.startswith("site-packages/")]
    archive.extractall(new, names)
    # Unchecked: Python then reads one file a module, and what it compiled stays what it was.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(str(new), quiet=2, ddir=str(build), invalidation_mode=mode)
    _sync([*new.rglob("*"), new])
    new.rename(build)
    for other in build.parent.iterdir():
        if other != build:
            shutil.rmtree(other, ignore_errors=True)


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
