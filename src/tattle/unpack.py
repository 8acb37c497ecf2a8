"""Puts botocore and tattle, compiled, where Python finds them: in /var/cache, once for each build.

botocore reads files beside its modules, so it can't run from the archive. Never on the login's
path: the deliverer and the command line do it.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pwd
import shutil
import sys
import time
import zlib
from collections.abc import Iterable
from importlib.machinery import SourcelessFileLoader
from pathlib import Path
from typing import TYPE_CHECKING
from zipimport import zipimporter

import tattle
from tattle.errors import TattleError, log
from tattle.trust import private_directory

if TYPE_CHECKING:
    import zipfile  # most deliverers do without

CACHES = ("/var/cache/tattle", "/run/tattle")  # root's; the latter where /var is full
REPAIR_SECONDS = 3600  # until a build that was damaged, and is again, is replaced once more
REPAIRED = "repaired"  # beside site-packages, in a build that replaces a damaged one


def from_archive() -> bool:
    """Tell whether tattle runs from the archive, not from what is unpacked or installed."""
    return isinstance(tattle.__loader__, zipimporter)


def unpack() -> None:
    """Make botocore importable. Raises TattleError if there is no place to unpack it to."""
    if from_archive():
        sys.path.insert(0, str(_unpacked(_archive())))
        # Drop Python's cached listing of this directory.
        importlib.invalidate_caches()


def repair() -> bool:
    """Replace the unpacked build if a file of it is missing or damaged. Return whether the caller
    must exec itself again: it was replaced, or the one that this process runs from is gone.

    A build that was replaced within the last hour is not replaced again: that did not help.
    """
    try:
        archive = _archive()
        for cache in _caches():
            build = cache / _build_name(archive)
            if not build.exists():
                continue
            damage = _damage(archive, build)
            if damage and abs(time.time() - _replaced(build)) > REPAIR_SECONDS:  # clocks are set
                log(f"damaged: {damage}: unpacking again")
                shutil.rmtree(build, ignore_errors=True)
                (_unpacked(archive).parent / REPAIRED).touch()
                return True
    except (OSError, TattleError):
        return False  # nowhere to repair it; the caller reports its own error
    # An upgrade has removed the build that this process runs from, or somebody has.
    packages = [sys.modules.get("botocore"), None if from_archive() else tattle]
    return not all(os.path.exists(package.__path__[0]) for package in packages if package)


def _damage(archive: zipfile.ZipFile, build: Path) -> str:
    """Return a path that is missing or not what was unpacked, if there is one."""
    for info in archive.infolist():
        if info.filename.startswith("site-packages/") and not info.is_dir():
            file = build / info.filename
            try:
                if file.suffix == ".py" and not file.exists():
                    file = file.with_suffix(".pyc")
                    SourcelessFileLoader(file.stem, str(file)).get_code(file.stem)
                elif zlib.crc32(file.read_bytes()) != info.CRC:
                    return str(file)
            except (OSError, ImportError, EOFError, ValueError, TypeError):
                return str(file)
    return ""


def _replaced(build: Path) -> float:
    """Return when a build was replaced because it was damaged, in seconds since the epoch, or 0."""
    try:
        return (build / REPAIRED).stat().st_mtime
    except OSError:
        return 0.0


def _archive() -> zipfile.ZipFile:
    import zipfile

    path = sys.argv[0]
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        message = f"can't read {path}: {error}"
        raise TattleError(message, os.EX_UNAVAILABLE, "install tattle again") from error


def _build_name(archive: zipfile.ZipFile) -> str:
    """Return the name of this build's directory for this Python; __main__.py builds the same."""
    build_id = json.loads(archive.read("environment.json"))["build_id"]
    return f"{build_id}-{sys.implementation.cache_tag}"


def _caches() -> list[Path]:
    """Return the directories to unpack to, best first. No environment variable has a say in it."""
    if os.geteuid() == 0:
        return [Path(path) for path in CACHES]
    try:
        return [Path(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "tattle")]
    except KeyError:
        message = f"can't unpack botocore: user {os.geteuid()} has no home"
        raise TattleError(message, os.EX_UNAVAILABLE, "run it as a user with a home") from None


def _unpacked(archive: zipfile.ZipFile) -> Path:
    """Return the site-packages of the archive's build, unpacked whole and on disk."""
    messages = []
    for cache in _caches():
        build = cache / _build_name(archive)
        try:
            if os.geteuid() != 0:
                cache.parent.mkdir(0o700, exist_ok=True)  # ~/.cache
            directory = private_directory(str(cache))
            try:
                if not build.exists():
                    fcntl.flock(directory, fcntl.LOCK_EX)
                    if not build.exists():
                        _unpack(archive, build)
                        os.fsync(directory)
            finally:
                os.close(directory)
        except (OSError, TattleError) as error:
            messages.append(f"{cache}: {error}")
        else:
            return build / "site-packages"
    message = f"can't unpack botocore: {'; '.join(messages)}"
    raise TattleError(message, os.EX_UNAVAILABLE, f"make room or repair it: df {_caches()[0]}")


def _unpack(archive: zipfile.ZipFile, build: Path) -> None:
    """Unpack and compile under another name, have it on disk, and only then give it its name.

    Then remove other builds. A process that still runs one of them, and misses a file, unpacks its
    own again.
    """
    import compileall
    import py_compile

    new = build.with_name(f".{build.name}")
    shutil.rmtree(new, ignore_errors=True)  # a killed process left it
    names = [name for name in archive.namelist() if name.startswith("site-packages/")]
    archive.extractall(new, names)
    # In the place of its source: Python then looks at one file a module. Unchecked: there is none.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(str(new), quiet=2, ddir=str(build), legacy=True, invalidation_mode=mode)
    for source in new.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()
    _sync([*new.rglob("*"), new])
    new.rename(build)
    for other in build.parent.iterdir():
        if other != build and not _is_used_by_1_0(other):
            shutil.rmtree(other, ignore_errors=True)


def _is_used_by_1_0(build: Path) -> bool:
    """Tell whether a process of tattle 1.0 runs from a build, and so has this file of it locked.

    It could not unpack its own again, would fail for 15 minutes, and keep the spool meanwhile.
    """
    try:
        with open(build / ".complete", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no build of 1.0's
    return False


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
