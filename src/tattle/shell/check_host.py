"""The probes of this host: what PAM and sshd do with a login, and what waits in the spool."""

from __future__ import annotations

import filecmp
import functools
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tattle.delivery import fault
from tattle.delivery.config import PATH as CONFIG
from tattle.delivery.config import Config
from tattle.delivery.pamd import FOLDERS, Line, Stack, services
from tattle.errors import TattleError
from tattle.login.spool import (
    EMERGENCY_PATH,
    LATE_SECONDS,
    OWN_FILES,
    PATH,
    REJECTED,
    Spool,
    accepted_at,
    is_record,
)
from tattle.shell import selinux as policy
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding, failed
from tattle.trust import trusted

SSHD = "/usr/sbin/sshd"
SSHD_SECONDS = 3.0
AUTHSELECT = "/etc/authselect"
NOTHING_BACK = "nothing keeps events back"
NOTHING_ASIDE = "nothing was set aside"
# The real user id of what these run is their caller's, who may then stop or kill it.
KEEPS_CALLERS_UID = ("su", "su-l", "sudo", "sudo-i", "doas", "polkit-1")
# A login variant is a PAM service of its own, and may include nothing of the other's.
VARIANTS = {"su": "su", "su-l": "su -", "sudo": "sudo", "sudo-i": "sudo -i"}
PAIRS = (("su", "su-l"), ("su-l", "su"), ("sudo", "sudo-i"), ("sudo-i", "sudo"))


def pam(config: Config) -> Iterator[Finding]:
    """Look at the line of each service that runs tattle or should, and at users' variables."""
    running = services()
    expected = {sshd_service()} if os.path.exists(SSHD) or not running else set()
    for service in sorted({*running, *expected, *config.services}):
        stack = Stack(service)
        hooks = stack.hooks()
        if not hooks:
            yield Finding("pam", ERROR, *missing_line(service, config), service)
            continue
        for line, path in hooks:
            yield hook_line(service, stack, line, path)
        if len(hooks) > 1:
            places = ", ".join(f"{line.file}:{line.number}" for line, _ in hooks)
            message = f"runs tattle more than once, so each event comes as often: {places}"
            own = [line for line, _ in hooks if os.path.basename(line.file) == service]
            yield Finding("pam", ERROR, message, edit((own or [hooks[-1][0]])[-1], "d"), service)
        yield from environment(service, stack)
    for covered, other in PAIRS:
        if covered in running and other not in (*running, *config.services) and pam_file(other):
            message = f"`{VARIANTS[covered]}` is reported, `{VARIANTS[other]}` is not"
            yield Finding("pam", WARNING, message, add_line(other), other)


def pam_file(service: str) -> str | None:
    """Return the path of a service's file, if there is one."""
    paths = [f"{folder}/{service}" for folder in FOLDERS]
    return next(filter(os.path.exists, paths), None)


def missing_line(service: str, config: Config) -> tuple[str, str]:
    """Return message and advice for a service that does not run tattle."""
    if pam_file(service):
        return "no line runs tattle", add_line(service)
    message = f"there is no {FOLDERS[0]}/{service}"
    if service in config.services:
        return message, f"is [service {service}] in {CONFIG} the name of a file in {FOLDERS[0]}?"
    return message, "install an SSH server, or see for other services: tattle recipe pam"


def add_line(service: str) -> str:
    """Return the command that adds our line to a service's file."""
    file = pam_file(service) or ""
    own = f"{FOLDERS[0]}/{service}"
    copy = "" if file == own else f"sudo cp {file} {own} && "  # the vendor's would be hidden
    options = "seteuid " if service in KEEPS_CALLERS_UID else ""
    line = f"session    optional     pam_exec.so {options}{os.path.realpath(sys.argv[0])}"
    last_line_ends = Path(file).read_bytes().endswith(b"\n")
    say = "echo" if last_line_ends else r"printf '\n%s\n'"
    return f"{copy}{say} '{line}' | sudo tee -a {own}"


def hook_line(service: str, stack: Stack, line: Line, path: str) -> Finding:
    """Look at one line that runs tattle."""
    where, own = f"{line.file}:{line.number}", os.path.realpath(sys.argv[0])
    type_option = next((word for word in line.arguments if word.startswith("type=")), "")
    skipping = stack.skipping(line)
    advice = ""
    if line.kind != "session":
        message = f"{where} runs tattle for {line.kind}, not for session"
        advice = edit(line, f"s/{line.kind}/session/")
    elif type_option:
        message = f"{where} has {type_option}: half of the events are missing"
        advice = edit(line, f"s/ {type_option}//")
    elif service in KEEPS_CALLERS_UID and "seteuid" not in line.arguments:
        message = f"{where} has no seteuid: its caller can stop or kill the hook"
        advice = edit(line, r"s/pam_exec\.so/pam_exec.so seteuid/")
    elif skipping:
        message = f"{where} can be skipped by {skipping.file}:{skipping.number}"
        advice = f"move the line in {line.file} in front of that one"
    else:
        try:
            if not os.access(trusted(path), os.X_OK):
                message, advice = f"{path} is not executable", f"sudo chmod 755 {path}"
            elif not filecmp.cmp(path, own, shallow=False):
                message = f"{where} runs {path}, which is not the same as this one, {own}"
                advice = f"sudo install -m 755 {own} {path}"
            else:
                message = f"{where} runs {path}"
        except FileNotFoundError:
            message = f"{where} runs {path}, which does not exist"
            advice = f"sudo install -m 755 {own} {path}"
        except TattleError as error:
            message, advice = str(error), error.advice
    return Finding("pam", ERROR if advice else OK, message, advice, service)


def environment(service: str, stack: Stack) -> Iterator[Finding]:
    """Say which lines let a user's own variables reach what PAM runs as root."""
    for line in stack.user_readenv():
        option = next(word for word in line.arguments if word.startswith("user_readenv="))
        message = (
            f"{line.file}:{line.number} reads ~/.pam_environment: who logs in can run code as root"
            " (LD_PRELOAD)"
        )
        yield Finding("environment", ERROR, message, edit(line, f"s/ *{option}//"), service)
    if not stack.user_readenv():
        message = "no user can put variables into the hook's environment"
        yield Finding("environment", OK, message, service=service)


def edit(line: Line, expression: str) -> str:
    """Return the command that changes a line; in a file that authselect writes, by a profile.

    https://github.com/authselect/authselect/blob/master/src/man/authselect-profiles.5.adoc
    """
    file = os.path.realpath(line.file)  # sed -i would put a file in the place of a symbolic link
    folder, name = os.path.split(file)
    configuration = Path(AUTHSELECT, "authselect.conf")  # the profile's name, then its features
    if folder != AUTHSELECT or not configuration.exists():
        lines = str(line.number) if line.number == line.last else f"{line.number},{line.last}"
        return f"sudo sed -i '{lines}{expression}' {file}"
    words = configuration.read_text().split("\n")
    profile, *features = [word for word in words if word and word[0] != "#"]
    word = "tattle" if line.module == "pam_exec.so" else line.module
    custom = profile if profile.startswith("custom/") else "custom/tattle"
    change = f"sudo sed -i '/{word}/{expression}' {AUTHSELECT}/{custom}/{name}"
    if custom == profile:
        return f"{change} && sudo authselect apply-changes"
    create = f"sudo authselect create-profile tattle --base-on={profile}"
    return f"{create} && {change} && sudo authselect select {' '.join([custom, *features])}"


def sshd() -> Iterator[Finding]:
    """Look whether sshd asks PAM."""
    if not os.path.exists(SSHD):
        yield Finding("sshd", SKIPPED, "not installed here")
    elif os.geteuid() != 0:
        yield Finding("sshd", SKIPPED, "needs root")
    else:
        try:
            settings = sshd_settings()
        except TattleError as error:
            severity = WARNING if error.status == os.EX_UNAVAILABLE else ERROR
            yield failed("sshd", error)._replace(severity=severity)
            return
        if settings.get("usepam", "").lower() == "yes":
            yield Finding("sshd", OK, f"UsePAM yes, as the service {sshd_service()}")
        else:
            advice = (
                "sudo sed -i '1i UsePAM yes' /etc/ssh/sshd_config"
                " && { sudo systemctl reload ssh || sudo systemctl reload sshd; }"
            )
            yield Finding("sshd", ERROR, "UsePAM is off: sshd asks no PAM module", advice)


def sshd_service() -> str:
    """Return the name of sshd's PAM service: PAMServiceName, OpenSSH 9.8 and later."""
    try:
        return sshd_settings().get("pamservicename", "sshd")
    except (TattleError, OSError, subprocess.SubprocessError):
        return "sshd"


@functools.cache
def sshd_settings() -> dict[str, str]:
    """Return sshd's settings by their names in lower case, as sshd itself reads its configuration.

    Raises TattleError, OSError or subprocess.TimeoutExpired.
    """
    # -G (OpenSSH 9.3 and later) reads the configuration. -T asks for more that sshd needs to run.
    for option in ("-G", "-T"):
        done = subprocess.run(
            [SSHD, option], capture_output=True, text=True, timeout=SSHD_SECONDS, check=False
        )
        if done.returncode == 0:
            settings = [line.partition(" ") for line in done.stdout.splitlines()]
            return {name.lower(): value for name, _, value in settings}
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    missing = re.match("Missing privilege separation directory: (.*)", reason)
    if missing:  # nobody has connected yet, with sshd.socket
        raise TattleError(
            f"sshd does not say whether UsePAM is on: {reason}",
            os.EX_UNAVAILABLE,
            f"sudo install -d -m 755 {missing[1]}",
        )
    fault = f"sshd {option} fails: {reason}"
    raise TattleError(fault, os.EX_CONFIG, "fix that; `sudo sshd -t` checks it")


def selinux() -> Iterator[Finding]:
    """Look whether SELinux lets login programs use tattle."""
    if os.geteuid() != 0:
        yield Finding("selinux", SKIPPED, "needs root")
        return
    found = policy.finding()
    if found:
        root = ("semodule", "restorecon")
        commands = [f"sudo {one}" if one.startswith(root) else one for one in found.commands]
        yield Finding("selinux", ERROR, found.message, " && ".join(commands))
    else:
        yield Finding("selinux", OK, policy.mode())


def spool() -> Iterator[Finding]:
    """Look at the spool's disk, at what waits, what was set aside, and why."""
    if os.geteuid() != 0:
        for id_ in ("disk", "spool", "rejected", "delivery"):
            yield Finding(id_, SKIPPED, "needs root")
        return
    yield disk()
    if not os.path.lexists(PATH):
        yield Finding("spool", OK, f"no {PATH} yet: no login since the installation")
        yield Finding("delivery", OK, NOTHING_BACK)
        yield Finding("rejected", OK, NOTHING_ASIDE)
    for path in (PATH, EMERGENCY_PATH):
        if os.path.lexists(path):
            try:
                yield from records(Spool(path))
            except TattleError as error:
                yield failed("spool", error)


def disk() -> Finding:
    """Look whether the spool's disk takes more records."""
    made = os.path.isdir(PATH) and not os.path.islink(PATH)
    mount = PATH if made else os.path.dirname(PATH)
    status = os.statvfs(mount)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    if status.f_flag & os.ST_RDONLY:
        return Finding("disk", ERROR, f"{mount} is read-only", f"sudo mount -o remount,rw {mount}")
    full = "" if status.f_bfree and (status.f_ffree or not status.f_files) else "the disk is full"
    try:
        if made:
            Spool().check_room()
    except TattleError:
        pass  # the spool's own finding
    except OSError as error:
        full = str(error)
    if full:
        advice = f"make room: sudo du -xh {mount} | sort -h | tail"
        return Finding("disk", ERROR, f"{mount}: {full}", advice)
    return Finding("disk", OK, f"{mount} has room")


def records(spool: Spool) -> Iterator[Finding]:
    """Look at what waits in a spool, what keeps it back, and at what was set aside."""
    for path in (f"{spool.path}/{name}" for name in OWN_FILES):
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            yield Finding("spool", ERROR, f"{path} is not a file", f"sudo rm -r {path}")
    names = spool.waiting()
    age = time.time() - accepted_at(names[0]) if names else 0.0
    message = f"{len(names)} waiting in {spool.path}"
    message += f", the oldest for {age:.0f} s" if names else ""
    severity = ERROR if age > LATE_SECONDS else OK
    if names and spool.path == EMERGENCY_PATH:
        severity, message = ERROR, f"{message}; a reboot empties it"
    if names or spool.path == PATH:
        yield Finding("spool", severity, message, "sudo tattle flush" if severity == ERROR else "")
    last = fault.last(spool) if names else None
    if last:
        ago = f"{time.time() - last.time:.0f} s ago"
        yield Finding("delivery", ERROR, f"{last.message} ({ago})", last.advice)
    elif spool.path == PATH:
        yield Finding("delivery", OK, NOTHING_BACK)
    yield from rejected(spool)


def count(names: list[str], noun: str) -> str:
    """Return how many there are, in words."""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def rejected(spool: Spool) -> Iterator[Finding]:
    """Look at what was set aside: records to send again, and what is no record."""
    folder = f"{spool.path}/{REJECTED}"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    events = [name for name in names if is_record(name)]
    others = [shlex.quote(f"{folder}/{name}") for name in names if not is_record(name)]
    if events:
        message = f"{count(events, 'event')} in {folder}: the log says why (journalctl -t tattle)"
        back = f"sudo sh -c 'mv -n {folder}/[0-9]*-[0-9]* {spool.path}/' && sudo tattle flush"
        yield Finding("rejected", ERROR, message, f"to send them again: {back}")
    if others:
        message = f"{count(others, 'file')} of another kind in {folder}"
        yield Finding("rejected", WARNING, message, f"look at it, then: sudo rm -r {others[0]}")
    if not names and spool.path == PATH:
        yield Finding("rejected", OK, NOTHING_ASIDE)
