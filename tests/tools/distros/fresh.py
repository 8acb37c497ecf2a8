"""`./build.sh test` as a stranger types it, on a fresh machine with nothing installed.

`./build.sh distros test [SUITE …]`: for each release a minimal debootstrap is copied, with this
checkout in it, and becomes the root directory of namespaces. The network is the machine's, and what
it takes to use it. No test may be skipped that can be run there. Prints a line for each release.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from standins import confinement
from support import copy_checkout
from tools.distros import bootstrap

SUITES = ("bookworm", "trixie", "sid")
PACKAGES = ("ca-certificates",)
ENTER = Path(__file__).with_name("fresh_root.sh")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
OF_THE_MACHINE = ("/etc/resolv.conf", CERTIFICATES)
CHECKOUT = "/opt/tattle"


def main(arguments: list[str], cache: Path) -> int:
    parser = argparse.ArgumentParser(prog="./build.sh distros test", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--only", action="append", default=[], metavar="TEST", help="repeatable")
    options = parser.parse_args(arguments)
    if missing := confinement.missing():
        parser.exit(1, f"that needs {missing}\n")
    results = {suite: test(suite, cache, options.only) for suite in options.suites or SUITES}
    for suite, (told, status, seconds) in results.items():
        print(f"{suite}: {told}, status {status}, {seconds:.0f} s in all")
    return max(status for _, status, _ in results.values())


def test(suite: str, cache: Path, only: list[str]) -> tuple[str, int, float]:
    """Run the tests there; what they said last, the exit status, and how long all of it took."""
    folder = copied(bootstrap.root(suite, cache, PACKAGES), cache / f"{suite}.fresh")
    began, last = time.monotonic(), ""
    command = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*command, str(ENTER), str(folder), suite, CHECKOUT, *only],
        env={**bootstrap.ENVIRONMENT, "CI": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(f"{suite}: {line}", end="", file=sys.stderr, flush=True)
            last = line.strip("= \n") or last
    shutil.rmtree(folder)
    return last, process.returncode, time.monotonic() - began


def copied(root: Path, folder: Path) -> Path:
    """A copy of that root with the checkout."""
    if folder.exists():  # of a run that was killed
        shutil.rmtree(folder)
    subprocess.run(["cp", "-a", str(root), str(folder)], check=True)
    checkout = folder / CHECKOUT[1:]
    copy_checkout(checkout)
    for command in ("init", "-q"), ("add", "-A"):  # the tests ask git which files are the project's
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    for path in map(Path, OF_THE_MACHINE):
        if path.exists():
            shutil.copy(path, folder / path.relative_to("/"))
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (folder / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
    return folder
