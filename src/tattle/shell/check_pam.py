"""The probe of PAM's stacks: which of them run tattle, and what users can do about it."""

from __future__ import annotations

import copy
import filecmp
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tattle.errors import TattleError
from tattle.event.config import PATH as CONFIG
from tattle.event.config import Config
from tattle.event.dispatch import KEY_VARIABLE, login, unset_by
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
REFUSES = "[success=ok default=die]"  # no session opens whose hook fails or is killed
# By this file pam_env takes the user's key out of the environment: see recipes/pam.
ENVIRONMENT = "/etc/tattle-env.conf"
UNSET = f"{KEY_VARIABLE} DEFAULT= OVERRIDE="
PAM_ENV = f"session    optional     pam_env.so conffile={ENVIRONMENT} readenv=0"
# Before a line with options: tries whether a command line as long can be run.
NEWLINE = r"\n"  # as sed and printf write it
PROBE = "session    [success=1 default=ignore] pam_exec.so type=open_session /bin/true"


def lines_for(tattle: str) -> list[str]:
    """Return the lines for sshd that run tattle, without options."""
    return [
        f"session    [success=2 default=ignore] pam_exec.so type=open_session {tattle}",
        PAM_ENV,
        f"session    optional     pam_exec.so type=open_session {tattle}",
        f"session    optional     pam_exec.so type=close_session {tattle}",
    ]


def pam(config: Config) -> Iterator[Finding]:
    """Look at the lines of each service that runs tattle or should, and at users' variables."""
    running = services()
    expected = {sshd_service()} if os.path.exists(SSHD) or not running else set()
    for service in sorted({*running, *expected, *config.services}):
        stack = Stack(service)
        if not stack.hooks():
            yield Finding("pam", ERROR, *missing_line(service, config), service)
            continue
        yield from hooks(service, stack)
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
    """Return the command that adds our lines to a service's file."""
    file = pam_file(service) or ""
    own = f"{FOLDERS[0]}/{service}"
    copied = "" if file == own else f"sudo cp {file} {own} && "  # the vendor's would be hidden
    tattle = os.path.realpath(sys.argv[0])
    lines = [f"session    optional     pam_exec.so {tattle}"]
    if service == sshd_service():
        copied, lines = f"{write_environment()} && {copied}", lines_for(tattle)
    elif service in KEEPS_CALLERS_UID:
        lines = [f"session    {REFUSES} pam_exec.so seteuid {tattle}"]
    first = [] if Path(file).read_bytes().endswith(b"\n") else [""]  # ends the last line
    text = NEWLINE.join([*first, *lines, ""])
    say = f"printf '{text}'" if text.count(NEWLINE) > 1 else f"echo '{lines[0]}'"
    return f"{copied}{say} | sudo tee -a {own}"


def write_environment() -> str:
    """Return the command that writes the file for pam_env."""
    return f"echo '{UNSET}' | sudo tee {ENVIRONMENT}"


def hooks(service: str, stack: Stack) -> Iterator[Finding]:
    """Look at the lines that run tattle, one by one, and then at what comes of them together."""
    paths: dict[str, str] = {}
    found = []
    for line, path in stack.hooks():
        message, advice = line_fault(service, stack, line)
        paths[path] = f"{paths[path]}, {line.number}" if path in paths else where(line)
        found += [Finding("pam", ERROR, message, advice, service)] if message else []
    for path, places in paths.items():
        message, advice = path_fault(path, places)
        found += [Finding("pam", ERROR, message, advice, service)] if message else []
    for path in [file for line in stack.lines for file in unset_by(line)]:
        try:
            trusted(path)  # as what is in there comes into every later line's environment
        except TattleError as error:
            found.append(Finding("pam", ERROR, str(error), error.advice, service))
    found = found or [*logins(service, stack)]
    told = ", ".join(f"{places}: {path}" for path, places in paths.items())
    yield from found or [Finding("pam", OK, told, service=service)]


def where(line: Line) -> str:
    """Return where a line stands."""
    return f"{line.file}:{line.number}"


def line_fault(service: str, stack: Stack, line: Line) -> tuple[str, str]:
    """Return message and advice for what is wrong with one line that runs tattle; "", "" if all is
    well."""
    skipping = stack.skipping(line)
    if line.kind != "session":
        message = f"{where(line)} runs tattle for {line.kind}, not for session"
        return message, edit(line, f"s/{line.kind}/session/")
    if service in KEEPS_CALLERS_UID and "seteuid" not in line.arguments:
        message = f"{where(line)} has no seteuid: its caller can stop or kill the hook"
        return message, edit(line, r"s/pam_exec\.so/pam_exec.so seteuid/")
    if skipping and skipping not in [hook for hook, _ in stack.hooks()]:
        message = f"{where(line)} can be skipped by {where(skipping)}"
        return message, f"move the line in {line.file} in front of that one"
    return "", ""


def path_fault(path: str, places: str) -> tuple[str, str]:
    """Return message and advice for what is wrong with what lines run; "", "" if all is well."""
    own = os.path.realpath(sys.argv[0])
    try:
        if not os.access(trusted(path), os.X_OK):
            return f"{path} is not executable", f"sudo chmod 755 {path}"
        if filecmp.cmp(path, own, shallow=False):
            return "", ""
        message = f"{places} runs {path}, which is not the same as this one, {own}"
    except FileNotFoundError:
        message = f"{places} runs {path}, which does not exist"
    except TattleError as error:
        return str(error), error.advice
    return message, f"sudo install -m 755 {own} {path}"


def logins(service: str, stack: Stack) -> Iterator[Finding]:
    """Say which logins are reported twice, or not at all, though each line by itself is right."""
    lines = [line for line, _ in stack.hooks()]
    usual = login(stack)
    large = login(stack, large_key=True)
    late = login(stack, lambda hook: any(word.startswith("--wait") for word in hook.arguments))
    places = ", ".join(map(where, lines))
    if max(len(usual.opened), len(usual.closed)) > 1:
        message = f"runs tattle more than once, so each event comes as often: {places}"
        yield Finding("pam", ERROR, message, one_line_changed(service, stack), service)
    elif not usual.reported_once():
        missing = "closed" if usual.opened else "opened"
        message = f"half of the events are missing, nothing reports `{missing}`: {places}"
        yield Finding("pam", ERROR, message, one_line_changed(service, stack), service)
    elif late.opens and len(late.opened) > 1:
        message = f"runs tattle again where --wait is over before the event is sent: {places}"
        yield Finding("pam", ERROR, message, edit(late.opened[0], "s/ --wait[^ ]*//"), service)
    elif service == sshd_service() and large.opens and not (large.opened and large.closed):
        message = (
            f"{where(lines[0])}: a login with a key or certificate over 128 KiB is not reported"
        )
        yield Finding("pam", ERROR, message, with_large_keys(stack, *stack.hooks()[0]), service)
    elif service in KEEPS_CALLERS_UID and login(stack, lambda hook: True).opens:
        message = f"{places}: its caller can open a session unreported by having the hook killed"
        control = re.sub(r"([][/.*])", r"\\\1", lines[0].control)
        advice = edit(lines[0], f"s/{control}/{REFUSES}/")
        yield Finding("pam", WARNING, message, advice, service)


def one_line_changed(service: str, stack: Stack) -> str:
    """Return the command that changes one line so that each login is reported once."""
    lines = [line for line, _ in stack.hooks()]
    own = [line for line in lines if os.path.basename(line.file) == service]
    for line in [*reversed(own), *reversed([one for one in lines if one not in own])]:
        plain = [word for word in line.arguments if not word.startswith("type=")]
        for new in ([line._replace(arguments=plain)], []):
            changed = copy.copy(stack)
            changed.lines = [one for old in stack.lines for one in (new if old == line else [old])]
            if login(changed).reported_once():
                return edit(line, "s/ type=[a-z_]*//" if new else "d")
    return f"take the lines in {lines[0].file} out, and then: tattle recipe pam | sudo sh"


def with_large_keys(stack: Stack, line: Line, path: str) -> str:
    """Return the commands by which logins with large keys are reported, too."""
    if any(f"conffile={ENVIRONMENT}" in one.arguments for one in stack.lines):
        return write_environment()
    if line.arguments == [path]:
        change = f"c {NEWLINE.join(lines_for(path))}"
    else:  # it stays as it is, with its options
        change = f"i {PROBE} {path}{NEWLINE}{PAM_ENV}"
    return f"{write_environment()} && {edit(line, change)}"


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
