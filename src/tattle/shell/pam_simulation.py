"""What libpam makes of a service's stack: which lines run when a session opens and when it closes.

As _pam_dispatch_aux() in Linux-PAM's libpam/pam_dispatch.c does it, with modules that succeed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tattle.event.pamd import Line, Stack

# What the words of pam.conf(5) stand for, as far as a module succeeds, fails or wants no say.
CONTROLS = {
    "required": "success=ok ignore=ignore default=bad",
    "requisite": "success=ok ignore=ignore default=die",
    "sufficient": "success=done default=ignore",
    "optional": "success=ok default=ignore",
}
SUCCESS, FAILURE, IGNORE = "success", "system_err", "ignore"  # what a module returns
# sshd(8) puts the user's key into it. A key may be larger than what execve(2) takes: 128 KiB.
KEY_VARIABLE = "SSH_AUTH_INFO_0"
UNSET = re.compile(rf"^\s*{KEY_VARIABLE}\s+DEFAULT=(\s+OVERRIDE=)?\s*(#.*)?$", re.MULTILINE)


class SimulatedLogin(NamedTuple):
    """What comes of a login: whether its session opens, and the lines that report either end."""

    opens: bool
    opened: list[Line]
    closed: list[Line]

    def reported_once(self) -> bool:
        """Tell whether there is one event of each kind."""
        return len(self.opened) == len(self.closed) == 1


def simulate_login(
    stack: Stack, fails: Callable[[Line], bool] = lambda hook: False, large_key: bool = False
) -> SimulatedLogin:
    """Return what comes of a login.

    fails: which hooks end with another status than 0, once they have done what they are for.
    large_key: pam_exec can run nothing until a line of pam_env's unsets KEY_VARIABLE.
    """
    lines = [line for line in stack.lines if line.kind == "session"]
    hooks = [line for line, _ in stack.hooks()]
    events: dict[str, list[Line]] = {"open_session": [], "close_session": []}
    can_run = not large_key

    def run(line: Line, event: str) -> str:
        nonlocal can_run
        if line.module == "pam_env.so":
            can_run = can_run or bool(unset_by(line, stack.root))
        if line.module != "pam_exec.so":
            return SUCCESS
        if any(word.startswith("type=") and word != f"type={event}" for word in line.arguments):
            return IGNORE
        if can_run and line in hooks:
            events[event].append(line)
        return SUCCESS if can_run and not (line in hooks and fails(line)) else FAILURE

    opens, returned = dispatch(lines, lambda line: run(line, "open_session"))
    if opens:
        dispatch(lines, lambda line: run(line, "close_session"), returned)
    return SimulatedLogin(opens, events["open_session"], events["close_session"])


def unset_by(line: Line, root: str = "") -> list[str]:
    """Return the files by which a line of pam_env's unsets KEY_VARIABLE, pam_env.conf(5)."""
    files = [word[9:] for word in line.arguments if word.startswith("conffile=")]
    found = [file for file in files[-1:] if Path(root + file).exists()]
    return [file for file in found if UNSET.search(Path(root + file).read_text(errors="replace"))]


def dispatch(
    lines: list[Line], run: Callable[[Line], str], frozen: dict[int, str] | None = None
) -> tuple[bool, dict[int, str]]:
    """Walk through a stack: return whether it succeeds, and what the lines at which index returned.

    frozen: that of the opening. At the close libpam takes the same way once more: it does what a
    line's control says of what the line returned then.
    """
    returned: dict[int, str] = {}
    good: bool | None = None  # until something counts
    at_entry: dict[int, bool | None] = {}  # `good` at the start of a substack, by level
    index = 0
    while index < len(lines):
        line = lines[index]
        if not line.module:  # a substack starts
            at_entry[line.level + 1] = good
            index += 1
            continue
        value = returned[index] = run(line)
        first = value if frozen is None else frozen.get(index, value)
        action = action_for(line.control, first)
        jump = int(action) if action.isdecimal() else 0
        if action in ("ok", "done") or (jump and frozen is not None):
            if good is not False and (value != IGNORE or first == IGNORE):
                good = value != FAILURE
        elif action in ("bad", "die"):
            good = False
        elif action == "reset":
            good = at_entry.get(line.level)
        if action == "die" or (action == "done" and good):
            jump = len(lines)  # to the end of the stack, or of the substack
        while jump and index + 1 < len(lines) and lines[index + 1].level >= line.level:
            index += 1
            while index + 1 < len(lines) and lines[index + 1].level > line.level:
                index += 1
            jump -= 1
        if jump and action.isdecimal():
            good = False  # beyond the end: "bad jump in stack"
        index += 1
    return good is True, returned


def action_for(control: str, value: str) -> str:
    """Return what a line's control says of what its module returned."""
    pairs = CONTROLS.get(control.lower(), control)
    actions: dict[str, str] = dict(re.findall(r"(\w+)\s*=\s*(\w+)", pairs.lower()))
    return actions.get(value, actions.get("default", "bad"))
