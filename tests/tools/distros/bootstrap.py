"""Debian's releases as folders: debootstrap makes each once, from where this machine's apt gets its
own packages, and checks the archive's signatures. Only the main archive: no security updates."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SUITES = ("bullseye", "bookworm", "trixie", "forky", "sid")
PACKAGES = (
    *("openssh-server", "openssh-client", "sudo", "python3"),
    *("iproute2", "procps"),  # what the throwaway instance runs in there: ip, kill
    *("systemd-sysv", "dbus", "libpam-systemd"),
)
MORE = {"sid": ("python3.15",)}  # besides its python3, for a run with that one
SCRIPTS = Path("/usr/share/debootstrap/scripts")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MADE_OF = "made-of"  # beside the folder, written last: the packages asked for
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


class BootstrapError(Exception):
    """Why a suite can't be had here."""


def root(suite: str, cache: Path, only: Sequence[str] = ()) -> Path:
    """The folder of that suite, made if it is not there, with the packages that the throwaway
    instance needs or with those alone. Remove it to have newer packages."""
    name = f"{suite}.minimal" if only else suite
    folder, made_of = cache / name, cache / f"{name}.{MADE_OF}"
    packages = ",".join(only or (*PACKAGES, *MORE.get(suite, ())))
    if folder.is_dir() and made_of.is_file() and made_of.read_text() == packages:
        return folder
    if not shutil.which("debootstrap", path=ENVIRONMENT["PATH"]):
        raise BootstrapError("debootstrap is not installed")
    new = cache / f"{name}.new"
    for old in (folder, new):
        if old.exists():
            shutil.rmtree(old)
    made_of.unlink(missing_ok=True)
    cache.mkdir(exist_ok=True)
    # A debootstrap older than the suite has no script of its name. All of them are links to sid's.
    script = SCRIPTS / (suite if (SCRIPTS / suite).exists() else "sid")
    command = ["debootstrap", "--force-check-gpg", "--variant=minbase", f"--include={packages}"]
    if KEYRING.exists():
        command.append(f"--keyring={KEYRING}")
    log = cache / f"{name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [*command, suite, str(new), mirror(), str(script)],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if done.returncode:
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        raise BootstrapError(f"debootstrap fails, see {log}: {' '.join(last)}")
    for package in new.glob("var/cache/apt/archives/*.deb"):
        package.unlink()
    new.rename(folder)
    made_of.write_text(packages)
    return folder


def mirror() -> str:
    """The URL from which this machine's apt has Debian's main archive."""
    command = [
        *("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"),
        "Created-By: Packages",
    ]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        origin, label, url = line.split("|", 2)
        if (origin, label) == ("Debian", "Debian"):
            return url
    raise BootstrapError("apt on this machine has no mirror of Debian's (or needs apt-get update)")
