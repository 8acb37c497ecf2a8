"""PAM's configuration, pam.d(5): what a service's stack runs, and whether users have a say."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, cast

from tattle.delivery.fields import age
from tattle.errors import TattleError
from tattle.login.pam import Session
from tattle.trust import trusted

OFF = re.compile(r"[+-]?0*(\D|$)")  # user_readenv= as pam_env reads it: atoi(3)
FOLDERS = ("/etc/pam.d", "/usr/lib/pam.d")  # the second is the vendor's
# What the dynamic loader, the C library and Python read before our first line, and would obey:
# ld.so(8), glibc's sysdeps/generic/unsecvars.h, CPython's Modules/getpath.py. A mend with pam_env
# has to unset all of it, as README's does.
UNSECURE = frozenset(
    """
    LD_ASSUME_KERNEL LD_AUDIT LD_BIND_NOT LD_BIND_NOW LD_DEBUG LD_DEBUG_OUTPUT LD_DYNAMIC_WEAK
    LD_HWCAP_MASK LD_LIBRARY_PATH LD_ORIGIN_PATH LD_PREFER_MAP_32BIT_EXEC LD_PRELOAD LD_PROFILE
    LD_PROFILE_OUTPUT LD_SHOW_AUXV LD_TRACE_LOADED_OBJECTS LD_TRACE_PRELINKING LD_USE_LOAD_BIAS
    LD_VERBOSE LD_WARN GLIBC_TUNABLES MALLOC_ARENA_MAX MALLOC_ARENA_TEST MALLOC_CHECK_
    MALLOC_MMAP_MAX_ MALLOC_MMAP_THRESHOLD_ MALLOC_PERTURB_ MALLOC_TOP_PAD_ MALLOC_TRACE
    MALLOC_TRIM_THRESHOLD_ GCONV_PATH GETCONF_DIR HOSTALIASES LOCALDOMAIN LOCPATH NIS_PATH NLSPATH
    RESOLV_HOST_CONF RES_OPTIONS TMPDIR TZ TZDIR PYTHONEXECUTABLE __PYVENV_LAUNCHER__
    """.split()  # noqa: SIM905
)


class Line(NamedTuple):
    """A line of a stack, with the file and where it stands there; `kind` is session, …"""

    file: str
    number: int  # its first line
    last: int  # after backslashes
    kind: str
    module: str
    arguments: list[str]


class Stack:
    """A service's stack: its lines in order, included ones too, and every file that it names."""

    def __init__(self, service: str) -> None:
        self.lines: list[Line] = []
        self.files: list[str] = []
        self._read(service, "", ())

    def hooks(self) -> list[tuple[int, Line, str]]:
        """Return where tattle is run: the place in the stack, the line, the path."""
        found = []
        for place, line in enumerate(self.lines):
            path = next((word for word in line.arguments if word.startswith("/")), "")
            if line.module == "pam_exec.so" and "tattle" in os.path.basename(path):
                found.append((place, line, path))
        return found

    def openings(self) -> list[tuple[int, Line]]:
        """Return the lines that let a user's ~/.pam_environment into the PAM environment."""
        found = []
        for place, line in enumerate(self.lines):
            values = [word[13:] for word in line.arguments if word.startswith("user_readenv=")]
            if line.module == "pam_env.so" and values and not OFF.match(values[-1]):
                found.append((place, line))
        return found

    def unset_before_hook(self) -> bool:
        """Tell whether pam_env unsets all of UNSECURE, behind every opening and before the hook."""
        last = max((place for place, _ in self.openings()), default=-1)
        first = min((place for place, _, _ in self.hooks()), default=0)
        for line in self.lines[last + 1 : first]:
            for word in line.arguments:
                if line.module == "pam_env.so" and word.startswith("conffile="):
                    try:
                        text = Path(trusted(word[9:])).read_text(errors="replace")
                    except (OSError, TattleError):
                        continue
                    lines = re.findall(r"^(\w+)[ \t]+DEFAULT=(\S*)(.*)$", text, re.MULTILINE)
                    unset = {name: not value and "OVERRIDE=" in rest for name, value, rest in lines}
                    if all(unset.get(name) for name in UNSECURE):
                        return True
        return False

    def _read(self, name: str, kind: str, above: tuple[str, ...]) -> None:
        """Add what libpam would: _pam_parse_conf_file() and _pam_assemble_line()."""
        places = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in FOLDERS]
        file = next((place for place in places if os.path.exists(place)), "")
        self.files += [place for place in places if place not in self.files]
        if not file or file in above:
            return
        words, begun = "", 0
        for number, text in enumerate(Path(file).read_text(errors="replace").split("\n"), 1):
            begun = number if not words else begun
            words += text.partition("#")[0].rstrip()
            if words.endswith("\\"):
                words = words[:-1] + " "
                continue
            entry, words = words.strip(), ""
            include = re.match(r"@include\s+(\S+)", entry)
            line = re.match(r"-?(\w+)\s+(\[.*?\]|\S+)\s+(\S+)(.*)", entry)
            if include:
                self._read(include[1], kind, (*above, file))
            elif line and kind in ("", line[1].lower()):
                if line[2].lower() in ("include", "substack"):
                    self._read(line[3], line[1].lower(), (*above, file))
                else:
                    arguments = [a or b for a, b in re.findall(r"\[(.*?)\]|(\S+)", line[4])]
                    module = os.path.basename(line[3])
                    self.lines.append(Line(file, begun, number, line[1].lower(), module, arguments))


def believed(session: Session) -> bool:
    """Tell whether what sshd said of a session's connection can't have been put there by its user.

    What let users in may have been mended since; so nothing of the stack may have changed since the
    session's process started. In doubt it is not believed.
    """
    try:
        stack = Stack(session.pam["PAM_SERVICE"])
        began = int(session.context["TATTLE_TIME"]) / 1e9 - cast(float, age(session))
        files = [file for file in stack.files if os.path.exists(file)]
        folders = {os.path.dirname(file) for file in stack.files}
        for path in [*files, *filter(os.path.exists, folders)]:
            if os.stat(path).st_ctime >= began:
                return False
        return bool(stack.lines) and not any(
            re.search(rb"(?i)user_readenv(?!=0[\s\]])", Path(file).read_bytes() + b"\n")
            for file in files
        )
    except (OSError, KeyError, ValueError, TypeError):
        return False


def services() -> list[str]:
    """Return the names of the services whose stacks run tattle."""
    names = {name for folder in FOLDERS if os.path.isdir(folder) for name in os.listdir(folder)}
    plain = [name for name in names if re.fullmatch(r"[\w-]+", name)]  # not sshd~, sshd.dpkg-old
    return sorted(name for name in plain if Stack(name).hooks())
