"""Put botocore within reach: shiv's bootstrap unpacks what the archive brings, once for each build.

Our own modules are there as well: compiled, which they never are in the archive.

Never on the login's path: this is the deliverer's and the command line's business.
"""

import fcntl
import io
import json
import os
import pwd
import shutil
import sys
import zipfile
from pathlib import Path
from zipimport import zipimporter

import tattle
from tattle import EX_UNAVAILABLE, TattleError
from tattle.files import private_folder

COMPLETE = ".complete"  # written last: without it a power cut may have left empty files


def unpack() -> None:
    """Make botocore importable. Raises TattleError if there is no place to unpack it to."""
    loader = tattle.__loader__
    if not isinstance(loader, zipimporter):
        return  # installed by pip, which brought botocore
    unpacked_to = [Path(path).parents[1] for path in tattle.__path__[:-1]]
    if any((build / COMPLETE).exists() for build in unpacked_to):
        return  # done; not to be asked of the archive, which may have been upgraded since
    name = json.loads(loader.get_data("environment.json"))["build_id"]
    name += "-" + sys.implementation.cache_tag  # as what is compiled suits one Python only
    faults = []
    for root in caches():
        try:
            site = unpacked(loader, root / name)
        except (OSError, TattleError) as error:
            faults.append(f"{root}: {error}")
        else:
            sys.path.insert(1, str(site))
            tattle.__path__.insert(0, str(site / "tattle"))
            return
    raise TattleError(f"can't unpack botocore: {'; '.join(faults)}", EX_UNAVAILABLE)


def caches() -> "list[Path]":
    """Return the folders to unpack to, best first. No environment variable has a say in it."""
    if os.geteuid() == 0:
        return [Path("/var/cache/tattle"), Path("/run/tattle")]  # the latter where /var is full
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise TattleError(
            f"can't unpack botocore: user {os.geteuid()} has no home", EX_UNAVAILABLE
        ) from None
    return [Path(home, ".cache", "tattle")]


def unpacked(loader: zipimporter, target: Path) -> Path:
    """Return the site-packages of a build, unpacked whole and on disk."""
    if os.geteuid() != 0:
        target.parent.parent.mkdir(0o700, exist_ok=True)  # ~/.cache
    folder = private_folder(str(target.parent))
    try:
        if not held(target):
            fcntl.flock(folder, fcntl.LOCK_EX)
            if not held(target):
                extract(loader, target)
                held(target)
        return target / "site-packages"
    finally:
        os.close(folder)


def held(target: Path) -> bool:
    """Keep a whole build from being removed while this process lives; tell whether it is one."""
    try:
        fd = os.open(target / COMPLETE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(fd, fcntl.LOCK_SH)
    return os.fstat(fd).st_nlink > 0


def in_use(other: Path) -> bool:
    """Tell whether a process holds that build."""
    try:
        with open(other / COMPLETE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no whole build, or no build at all
    return False


def extract(loader: zipimporter, target: Path) -> None:
    """Unpack with shiv, have it on disk, and only then say so; remove what other builds left."""
    from _bootstrap import extract_site_packages

    with zipfile.ZipFile(io.BytesIO(loader.get_data("site-packages.zip"))) as file:
        extract_site_packages(file, target, compile_pyc=True, compile_workers=1, force=True)
    for path in [*target.rglob("*"), target]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    (target / COMPLETE).touch(0o600)
    for other in target.parent.iterdir():
        if other.name != target.name and not in_use(other):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
