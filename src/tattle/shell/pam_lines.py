"""sshd's lines for PAM, and the commands that add lines to PAM's files or change them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tattle.event.pamd import DIRECTORIES, Line, Stack
from tattle.shell.check_sshd import sshd_service
from tattle.shell.pam_simulation import KEY_VARIABLE

AUTHSELECT = "/etc/authselect"
# The real user id of what these run is their caller's, who may then stop or kill it.
KEEPS_CALLERS_UID = ("su", "su-l", "sudo", "sudo-i", "doas", "polkit-1")
REFUSES = "[success=ok default=die]"  # no session opens whose hook fails or is killed
# By this file pam_env takes the user's key out of the environment: see recipes/pam.
ENVIRONMENT = "/etc/tattle-env.conf"
UNSET = f"{KEY_VARIABLE} DEFAULT= OVERRIDE="
PAM_ENV = f"session    optional     pam_env.so conffile={ENVIRONMENT} readenv=0"
NEWLINE = r"\n"  # as sed and printf write it
# Before a line with options: tries whether a command line as long can be run.
PROBE = "session    [success=1 default=ignore] pam_exec.so type=open_session /bin/true"


def lines_for(tattle: str) -> list[str]:
    """Return the lines for sshd that run tattle, without options."""
    return [
        f"session    [success=2 default=ignore] pam_exec.so type=open_session {tattle}",
        PAM_ENV,
        f"session    optional     pam_exec.so type=open_session {tattle}",
        f"session    optional     pam_exec.so type=close_session {tattle}",
    ]


def pam_file(service: str) -> str | None:
    """Return the path of a service's file, if there is one."""
    paths = [f"{directory}/{service}" for directory in DIRECTORIES]
    return next(filter(os.path.exists, paths), None)


def add_line(service: str) -> str:
    """Return the command that adds our lines to a service's file."""
    file = pam_file(service) or ""
    own = f"{DIRECTORIES[0]}/{service}"
    copied = "" if file == own else f"sudo cp {file} {own} && "  # the vendor's would be hidden
    tattle = os.path.realpath(sys.argv[0])
    lines = [f"session    optional     pam_exec.so {tattle}"]
    if service == sshd_service():
        copied, lines = f"{write_environment()} && {copied}", lines_for(tattle)
    elif service in KEEPS_CALLERS_UID:
        lines = [f"session    {REFUSES} pam_exec.so seteuid {tattle}"]
    first = [] if Path(file).read_bytes().endswith(b"\n") else [""]  # ends the last line
    text = NEWLINE.join([*first, *lines, ""])
    return f"{copied}printf '{text}' | sudo tee -a {own}"


def write_environment() -> str:
    """Return the command that writes the file for pam_env."""
    return f"echo '{UNSET}' | sudo tee {ENVIRONMENT}"


def with_large_keys(stack: Stack, line: Line, path: str) -> str:
    """Return the commands by which logins with large keys are reported, too."""
    if any(f"conffile={ENVIRONMENT}" in one.arguments for one in stack.lines):
        return write_environment()
    if line.arguments == [path]:
        change = f"c {NEWLINE.join(lines_for(path))}"
    else:  # it stays as it is, with its options
        change = f"i {PROBE} {path}{NEWLINE}{PAM_ENV}"
    return f"{write_environment()} && {edit(line, change)}"


def edit(line: Line, expression: str) -> str:
    """Return the command that changes a line; in a file that authselect writes, by a profile.

    https://github.com/authselect/authselect/blob/master/src/man/authselect-profiles.5.adoc
    """
    file = os.path.realpath(line.file)  # sed -i would put a file in the place of a symbolic link
    directory, name = os.path.split(file)
    configuration = Path(AUTHSELECT, "authselect.conf")  # the profile's name, then its features
    if directory != AUTHSELECT or not configuration.exists():
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
