"""The probe of PAM's stacks: which of them run tattle, and what users can do about it."""

from __future__ import annotations

import copy
import filecmp
import os
import re
import sys
from collections.abc import Iterator

from tattle.errors import TattleError
from tattle.event.config import PATH as CONFIG
from tattle.event.config import Config
from tattle.event.pamd import DIRECTORIES, Line, Stack, services
from tattle.shell.check_sshd import SSHD, sshd_service
from tattle.shell.finding import ERROR, OK, WARNING, Finding
from tattle.shell.pam_lines import (
    KEEPS_CALLERS_UID,
    REFUSES,
    add_line,
    edit,
    pam_file,
    with_large_keys,
)
from tattle.shell.pam_simulation import simulate_login, unset_by
from tattle.shell.selinux import confined_logins, mode
from tattle.trust import trusted

# A login variant is a PAM service of its own, and may include nothing of the other's.
VARIANTS = {"su": "su", "su-l": "su -", "sudo": "sudo", "sudo-i": "sudo -i"}
PAIRS = (("su", "su-l"), ("su-l", "su"), ("sudo", "sudo-i"), ("sudo-i", "sudo"))


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


def missing_line(service: str, config: Config) -> tuple[str, str]:
    """Return message and advice for a service that does not run tattle."""
    if pam_file(service):
        return "no line runs tattle", add_line(service)
    message = f"there is no {DIRECTORIES[0]}/{service}"
    if service in config.services:
        named = f"is [service {service}] in {CONFIG} the name of a file in {DIRECTORIES[0]}?"
        return message, named
    return message, "install an SSH server, or see for other services: tattle recipe pam"


def hooks(service: str, stack: Stack) -> Iterator[Finding]:
    """Look at the lines that run tattle, one by one, and then at what comes of them together."""
    paths: dict[str, str] = {}
    found = []
    for line, path in stack.hooks():
        message, advice = line_problem(service, stack, line)
        paths[path] = f"{paths[path]}, {line.number}" if path in paths else where(line)
        found += [Finding("pam", ERROR, message, advice, service)] if message else []
    for path, places in paths.items():
        message, advice = path_problem(path, places)
        found += [Finding("pam", ERROR, message, advice, service)] if message else []
    for path in [file for line in stack.lines for file in unset_by(line)]:
        try:
            trusted(path)  # as what is in there comes into every later line's environment
        except TattleError as error:
            found.append(Finding("pam", ERROR, str(error), error.advice, service))
    found = found or [*logins(service, stack), *confined(service, stack)]
    message = ", ".join(f"{places}: {path}" for path, places in paths.items())
    yield from found or [Finding("pam", OK, message, service=service)]


def where(line: Line) -> str:
    """Return where a line stands."""
    return f"{line.file}:{line.number}"


def line_problem(service: str, stack: Stack, line: Line) -> tuple[str, str]:
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


def path_problem(path: str, places: str) -> tuple[str, str]:
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
    usual = simulate_login(stack)
    large = simulate_login(stack, large_key=True)
    late = simulate_login(
        stack, lambda hook: any(word.startswith("--wait") for word in hook.arguments)
    )
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
    elif service in KEEPS_CALLERS_UID and simulate_login(stack, lambda hook: True).opens:
        message = f"{places}: its caller can open a session unreported by having the hook killed"
        control = re.sub(r"([][/.*])", r"\\\1", lines[0].control)
        advice = edit(lines[0], f"s/{control}/{REFUSES}/")
        yield Finding("pam", WARNING, message, advice, service)


def confined(service: str, stack: Stack) -> Iterator[Finding]:
    """Say whether SELinux keeps the hook from reporting a confined user's login."""
    names = confined_logins()
    if mode() != "enforcing" or not names or service in KEEPS_CALLERS_UID:
        return
    session = [line for line in stack.lines if line.kind == "session"]
    for line in session:
        if line.module == "pam_selinux.so" and "close" not in line.arguments:
            late = [
                hook
                for hook in simulate_login(stack).opened
                if session.index(hook) > session.index(line)
            ]
            if late:
                message = (
                    f"{where(late[0])} comes after {where(line)}: it may not report logins whose"
                    f" SELinux user is confined: {', '.join(names)}"
                )
                advice = f"move the lines in {late[0].file} in front of that one"
                if service == "sshd":
                    advice = "tattle recipe pam | sudo sh -s early"
                yield Finding("pam", ERROR, message, advice, service)
            return


def one_line_changed(service: str, stack: Stack) -> str:
    """Return the command that changes one line so that each login is reported once."""
    lines = [line for line, _ in stack.hooks()]
    own = [line for line in lines if os.path.basename(line.file) == service]
    for line in [*reversed(own), *reversed([one for one in lines if one not in own])]:
        plain = [word for word in line.arguments if not word.startswith("type=")]
        for new in ([line._replace(arguments=plain)], []):
            changed = copy.copy(stack)
            changed.lines = [one for old in stack.lines for one in (new if old == line else [old])]
            if simulate_login(changed).reported_once():
                return edit(line, "s/ type=[a-z_]*//" if new else "d")
    return f"take the lines in {lines[0].file} out, and then: tattle recipe pam | sudo sh"


def environment(service: str, stack: Stack) -> Iterator[Finding]:
    """Say which lines let a user's own variables reach what PAM runs as root."""
    for line in stack.user_readenv():
        option = next(word for word in line.arguments if word.startswith("user_readenv="))
        message = (
            f"{where(line)} reads ~/.pam_environment: who logs in can run code as root (LD_PRELOAD)"
        )
        yield Finding("environment", ERROR, message, edit(line, f"s/ *{option}//"), service)
    if not stack.user_readenv():
        message = "no user can put variables into the hook's environment"
        yield Finding("environment", OK, message, service=service)
