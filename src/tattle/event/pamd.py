"""PAM's configuration, pam.d(5): what a service's stack runs, and whether users can set variables.

It is read as libpam reads it: _pam_parse_conf_file() and _pam_dispatch() in Linux-PAM's libpam.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, cast

from tattle.login.pam import Session, age

OFF = re.compile(r"[+-]?0*(\D|$)")  # user_readenv= as pam_env reads it: atoi(3)
DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d")  # the second is the vendor's
KINDS = ("auth", "account", "session", "password")


class Line(NamedTuple):
    """A line of a stack. A `substack` line is followed by the lines that it brings in."""

    file: str
    number: int  # its first line in the file
    last: int  # and its last one, after backslashes
    kind: str  # session, …
    control: str
    module: str
    arguments: list[str]
    level: int  # of substacks that it lies in


class Stack:
    """A service's stack: its lines in order, included ones too, and every file that it names."""

    def __init__(self, service: str, root: str = "") -> None:
        """Read the stack from the files below a root directory. Raises OSError."""
        self.root = root
        self.lines: list[Line] = []
        self.files: list[str] = []
        self._read(service, "", 0, ())
        for kind in KINDS:  # where a service says nothing, the service `other` does
            if not any(line.kind == kind for line in self.lines):
                self._read("other", kind, 0, ())

    def hooks(self) -> list[tuple[Line, str]]:
        """Return the lines that run tattle, each with its path."""
        found = []
        for line in self.lines:
            path = next((word for word in line.arguments if word.startswith("/")), "")
            if line.module == "pam_exec.so" and "tattle" in os.path.basename(path):
                found.append((line, path))
        return found

    def user_readenv(self) -> list[Line]:
        """Return the lines that let a user's ~/.pam_environment into the PAM environment."""
        found = []
        for line in self.lines:
            values = [word[13:] for word in line.arguments if word.startswith("user_readenv=")]
            if line.module == "pam_env.so" and values and not OFF.match(values[-1]):
                found.append(line)
        return found

    def skipping(self, hook: Line) -> Line | None:
        """Return a line that can keep a later one from being run although the session opens.

        It jumps over it, or ends the stack, a substack maybe, with success.
        """
        lines = [line for line in self.lines if line.kind == hook.kind]
        place = lines.index(hook)
        for start, line in enumerate(lines[:place], 1):
            reach = lines[start : place + 1]
            if any(other.level < line.level for other in reach):
                continue  # what happens in a substack stays in it
            actions = re.findall(r"=\s*(\w+)", line.control)
            jump = max((int(action) for action in actions if action.isdecimal()), default=0)
            steps = sum(other.level == line.level for other in reach)
            if line.control.lower() == "sufficient" or "done" in actions or 0 < steps <= jump:
                return line
        return None

    def _read(self, name: str, kind: str, level: int, above: tuple[str, ...]) -> None:
        """Add the lines of a file: of one kind, or of all where that is empty."""
        places = [name] if name.startswith("/") else [f"{path}/{name}" for path in DIRECTORIES]
        file = next((place for place in places if os.path.exists(self.root + place)), "")
        self.files += [place for place in places if place not in self.files]
        if not file or file in above:
            return
        above = (*above, file)
        text = Path(self.root + file).read_text(errors="replace")
        words, first = "", 0
        for number, part in enumerate(text.split("\n"), 1):
            first = number if not words else first
            content, comment, _ = part.partition("#")
            words += content.rstrip()
            if words.endswith("\\") and not comment:
                words = words[:-1] + " "
                continue
            entry, words = words.strip(), ""
            include = re.match(r"@include\s+(\S+)", entry)  # Debian's
            line = re.match(r"-?(\w+)\s+(\[.*?\]|\S+)\s+(\S+)(.*)", entry)
            if include:
                self._read(include[1], kind, level, above)
            elif line and kind in ("", line[1].lower()):
                arguments = [a or b for a, b in re.findall(r"\[(.*?)\]|(\S+)", line[4])]
                of, control = line[1].lower(), line[2]
                module = os.path.basename(line[3])
                found = Line(file, first, number, of, control, module, arguments, level)
                if control.lower() == "include":
                    self._read(line[3], of, level, above)
                elif control.lower() == "substack":
                    self.lines.append(found._replace(module=""))
                    self._read(line[3], of, level + 1, above)
                else:
                    self.lines.append(found)


def trusts_sshd(session: Session) -> bool:
    """Tell whether what sshd said of a session's connection can't come from its user instead.

    The stack as it is now says nothing about the one that the session was opened with if a file
    has changed since the session's process started. In doubt the answer is no: so any line that
    names user_readenv counts, whatever the module, where Stack.user_readenv() knows pam_env's.
    """
    try:
        stack = Stack(session.pam["PAM_SERVICE"])
        began = int(session.context["TATTLE_TIME"]) / 1e9 - cast(float, age(session))
        files = [file for file in stack.files if os.path.exists(file)]
        directories = {os.path.dirname(file) for file in stack.files}
        for path in [*files, *filter(os.path.exists, directories)]:
            if os.stat(path).st_ctime >= began:
                return False
        return bool(stack.lines) and not any(
            re.search(rb"(?i)user_readenv(?!=0[\s\]])", Path(file).read_bytes() + b"\n")
            for file in files
        )
    except (OSError, KeyError, ValueError, TypeError):
        return False


def services(root: str = "") -> list[str]:
    """Return the names of the services whose stacks run tattle."""
    directories = [root + directory for directory in DIRECTORIES if os.path.isdir(root + directory)]
    names = {name for directory in directories for name in os.listdir(directory)}
    plain = [name for name in names if re.fullmatch(r"[\w-]+", name)]  # not sshd~, sshd.dpkg-old
    return sorted(name for name in plain if Stack(name, root).hooks())
