"""The probe of PAM's stacks: which of them run tattle, and what users can do about it."""

from __future__ import annotations

import filecmp
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tattle.errors import TattleError
from tattle.event.config import PATH as CONFIG
from tattle.event.config import Config
from tattle.event.pamd import FOLDERS, Line, Stack, services
from tattle.shell.check_sshd import SSHD, sshd_service
from tattle.shell.finding import ERROR, OK, WARNING, Finding
from tattle.trust import trusted

AUTHSELECT = "/etc/authselect"
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
