"""PAM's configuration is read as libpam reads it: libpam itself is asked about each case.

Each folder in pam.d/ is a case: the root of a file system. In `rhel9` lie the stacks of RHEL 9 and
its relatives, with authselect's links; in `al2023` Amazon Linux 2023's, which has no authselect:
made of the files of Fedora's packages that it is built from, not seen on one.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from support import need
from tattle.event.pamd import Line, Stack, services
from tattle.shell import check_pam, pam_lines
from tattle.shell.pam_simulation import FAILURE, IGNORE, SUCCESS, dispatch, simulate_login

CASES = Path(__file__).with_name("pam.d")
SERVICES = [
    (case.name, file.name)
    for case in sorted(CASES.iterdir())
    for file in sorted(case.glob("etc/pam.d/*"))
    if file.name != "other"
]
SKIPPING = {  # the line that can keep the hook from running although the session opens
    "ended-by-done": "sshd:1",
    "ended-by-sufficient": "sshd:1",
    "hook-first-in-a-substack": None,
    "hook-in-a-substack": "sshd:1",
    "includes-of-one-kind": None,
    "jump-ends-before-the-hook": None,
    "jump-over-a-substack": "sshd:2",
    "jump-over-an-include": None,
    "jump-within-a-substack": None,
    "jumped-over": "sshd:1",
    "no-session-of-its-own": None,
    "requisite-that-fails": None,
    "sufficient-behind-a-substack": "sshd:2",
    "sufficient-in-a-substack": None,
    "sufficient-in-an-include": "inner:1",
}
OTHERS = ["rhel9", "al2023"]
DISPATCH = ["four-lines", "jump-beyond-the-end", "reset-and-die"]
TRACER = """\
#!/bin/sh
echo "$1" >>{folder}/trace
read -r failing <{folder}/failing
case " $failing " in *" $1 "*) exit 1; esac
"""
# sshd's file, with {tattle} for the hook, and the file `ours` beside it; where the line is found
LINE = "session optional pam_exec.so {tattle}"
SPELLINGS = [
    (f"{LINE}\n", "", "sshd:1"),
    (f"-{LINE}\n", "", "sshd:1"),
    (f"  \t{LINE}\n", "", "sshd:1"),
    ("session [success=ok default=ignore] pam_exec.so quiet {tattle} --wait=2\n", "", "sshd:1"),
    ("session optional pam_exec.so [{tattle}]\n", "", "sshd:1"),
    ("session optional \\\n  pam_exec.so \\\n  quiet {tattle} # ours\n", "", "sshd:1"),
    ("session optional\\\npam_exec.so\\\n{tattle}\n", "", "sshd:1"),
    ("session optional \\ \t\n  pam_exec.so {tattle}\n", "", "sshd:1"),
    ("session optional pam_exec.so # caf\xe9 \\\n  {tattle}\n", "", None),
    ("session optional \\ # ours\n  pam_exec.so {tattle}\n", "", None),
    (f"# caf\xe9\n{LINE}\n", "", "sshd:2"),
    ("session optional {security}/pam_exec.so {tattle}\n", "", "sshd:1"),
    ("session include {ours}\n", "SESSION Optional pam_exec.so {tattle}\n", "ours:1"),
    ("session substack {ours}\n", f"auth required pam_deny.so\n{LINE}\n", "ours:2"),
    ("session INCLUDE {ours}\n", f"{LINE}\n", "ours:1"),
    ("@include {ours}\n", f"# nothing\n\n{LINE}\n", "ours:3"),
    (f"# {LINE}\n", "", None),
    ("session optional pam_exec.so /bin/true # {tattle}\n", "", None),
    ("session optional pam_permit.so {tattle}\n", "", None),
    ("session include {ours}-not # {tattle}\n", "", None),
]
HOLE = "session required pam_env.so user_readenv=1\n"
HOLES = [
    (HOLE, "sshd:1"),
    (f"# a comment\n  {HOLE}", "sshd:2"),
    ("SESSION REQUIRED pam_env.so user_readenv=1\n", "sshd:1"),
    ("session required pam_env.so [user_readenv=1]\n", "sshd:1"),
    ("session required pam_env.so user_readenv=2\tenvfile=/etc/default/locale\n", "sshd:1"),
    ("auth optional pam_env.so user_readenv=1\n", "sshd:1"),
    ("session required pam_env.so \\\n  user_readenv=1\n", "sshd:1"),  # where the line begins
    ("session [success=ok default=ignore] pam_env.so user_readenv=01 debug\n", "sshd:1"),
    ("-session optional /lib/security/pam_env.so user_readenv=0 user_readenv=1\n", "sshd:1"),
    ("session include {hole}\n", "hole:1"),
    ("session substack {hole}\n", "hole:1"),
    ("@include\t{hole}\n", "hole:1"),
    (f"# {HOLE}", None),
    ("session required pam_env.so # user_readenv=1\n", None),
    ("session required pam_env.so user_readenv=0\n", None),
    ("session required pam_env.so user_readenv=yes\n", None),  # no number
    ("session required pam_env.so user_readenv=1 user_readenv=0\n", None),
]
PAM_SYSTEM_ERR = 4
CONVERSE = ctypes.CFUNCTYPE(ctypes.c_int)


def place(line: Line) -> str:
    return f"{Path(line.file).name}:{line.number}"


def stack(case: str, service: str = "sshd") -> Stack:
    return Stack(service, str(CASES / case))


class Libpam:
    """The machine's libpam over the stacks in a folder, where the program `tracer` writes down its
    argument, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(ctypes.util.find_library("pam"))
        need(hasattr(self.library, "pam_start_confdir"), "needs Linux-PAM 1.4 or later")
        self.folder = folder
        (folder / "tracer").write_text(TRACER.format(folder=folder))
        (folder / "tracer").chmod(0o755)
        (folder / "pam.d").mkdir()

    def copy(self, case: str) -> None:
        """Copy a case, in which each module is replaced by one that writes down its place."""
        for file in (CASES / case / "etc/pam.d").iterdir():
            lines = file.read_text().splitlines()
            traced = [self.traced(line, f"{file.name}:{n}") for n, line in enumerate(lines, 1)]
            (self.folder / "pam.d" / file.name).write_text("\n".join(traced) + "\n")

    def traced(self, line: str, name: str) -> str:
        entry = re.match(r"(-?\w+\s+(\[.*?\]|\w+)\s+)(\S+)", line)
        if not entry:
            return line
        if entry[2] in ("include", "substack"):
            return f"{entry[1]}{self.folder}/pam.d/{entry[3]}"  # Debian 12 looks in /etc/pam.d
        types = re.findall(r"type=\w+", line)
        return " ".join([entry[1], "pam_exec.so quiet", *types, f"{self.folder}/tracer", name])

    def let_every_line_run(self) -> None:
        """No line jumps over others, or ends the stack."""
        control = re.compile(r"^(-?\w+\s+)(?!include|substack)(\[.*?\]|\w+)", re.MULTILINE)
        for file in (self.folder / "pam.d").iterdir():
            text = re.sub(r"type=\w+ ", "", file.read_text())
            file.write_text(control.sub(r"\1optional", text))

    def open_session(
        self, service: str, failing: Sequence[str] = (), closing: bool = False
    ) -> tuple[bool, list[str]]:
        """Return whether the session opens, and the places of the modules that were run. `closing`:
        also those that are run at its close, behind a `-`."""
        (self.folder / "failing").write_text(" ".join(failing) + "\n")
        trace = self.folder / "trace"
        trace.write_text("")
        converse = CONVERSE(lambda: PAM_SYSTEM_ERR)
        conversation = (ctypes.c_void_p * 2)(ctypes.cast(converse, ctypes.c_void_p), None)
        handle = ctypes.c_void_p()
        folder = str(self.folder / "pam.d").encode()
        arguments = (service.encode(), b"root", conversation, folder, ctypes.byref(handle))
        assert self.library.pam_start_confdir(*arguments) == 0
        status = self.library.pam_open_session(handle, 0)
        if closing and status == 0:
            trace.write_text(f"{trace.read_text()}-\n")
            self.library.pam_close_session(handle, 0)
        self.library.pam_end(handle, status)
        return status == 0, trace.read_text().split()


@pytest.mark.parametrize(("case", "service"), SERVICES)
def test_a_stack_has_the_lines_that_libpam_runs_in_that_order(
    case: str, service: str, tmp_path: Path
) -> None:
    libpam = Libpam(tmp_path)
    libpam.copy(case)
    libpam.let_every_line_run()
    _, run = libpam.open_session(service)
    lines = [line for line in stack(case, service).lines if line.kind == "session"]
    assert [place(line) for line in lines if line.control != "substack"] == run


@pytest.mark.parametrize(("case", "skipping"), SKIPPING.items(), ids=list(SKIPPING))
def test_a_line_that_can_keep_the_hook_from_running_is_found(
    case: str, skipping: str | None, tmp_path: Path
) -> None:
    ((hook, _),) = stack(case).hooks()
    found = stack(case).skipping(hook)
    assert (place(found) if found else None) == skipping
    libpam = Libpam(tmp_path)
    libpam.copy(case)
    session = [line for line in stack(case).lines if line.kind == "session" and line.module]
    others = [place(line) for line in session if line != hook]
    runs = [
        libpam.open_session("sshd", failing)
        for count in range(len(others) + 1)
        for failing in itertools.combinations(others, count)
    ]
    assert any(opened for opened, _ in runs)
    skipped = any(opened and place(hook) not in run for opened, run in runs)
    assert skipped == bool(skipping)


@pytest.mark.parametrize("case", [*OTHERS, *SKIPPING, *DISPATCH])
def test_which_lines_run_at_the_close_is_what_libpam_makes_of_the_opening(
    case: str, tmp_path: Path
) -> None:
    """With each line failing, alone and, in the smaller stacks, with another one."""
    lines = [line for line in stack(case).lines if line.kind == "session"]
    places = [place(line) for line in lines if line.module]
    libpam = Libpam(tmp_path)
    libpam.copy(case)
    for count in range(3 if len(places) < 6 else 2):
        for failing in itertools.combinations(places, count):
            found = opened_and_closed(lines, failing)
            assert found == libpam.open_session("sshd", failing, closing=True), failing


def opened_and_closed(lines: list[Line], failing: Sequence[str]) -> tuple[bool, list[str]]:
    """What open_session() says, by dispatch()."""
    run = []

    def result(line: Line, event: str) -> str:
        types = [word for word in line.arguments if word.startswith("type=")]
        if types not in ([], [f"type={event}"]):
            return IGNORE
        run.append(place(line))
        return FAILURE if place(line) in failing else SUCCESS

    opens, returned = dispatch(lines, lambda line: result(line, "open_session"))
    if opens:
        run.append("-")
        dispatch(lines, lambda line: result(line, "close_session"), returned)
    return opens, run


@pytest.mark.parametrize(("sshd", "ours", "found"), SPELLINGS)
def test_the_hook_is_found_however_its_line_is_written(
    sshd: str, ours: str, found: str | None, tmp_path: Path
) -> None:
    libpam, pam_d = Libpam(tmp_path), tmp_path / "pam.d"
    (tmp_path / "tracer").rename(tmp_path / "tattle")
    (security, *_) = Path("/usr/lib").glob("*/security/pam_exec.so")
    places = {
        "tattle": tmp_path / "tattle",
        "security": security.parent,
        "ours": pam_d / "ours",
    }
    (pam_d / "sshd").write_text(sshd.format(**places), encoding="latin-1")
    (pam_d / "ours").write_text(ours.format(**places))
    hooks = Stack(str(pam_d / "sshd")).hooks()
    assert [(place(line), path) for line, path in hooks] == (
        [(found, str(tmp_path / "tattle"))] if found else []
    )
    _, run = libpam.open_session("sshd")
    assert (tmp_path / "trace").read_text().count("\n") == len(hooks), run


def test_a_file_that_includes_itself_runs_nothing(tmp_path: Path) -> None:
    """libpam crashes over it."""
    (tmp_path / "sshd").write_text(f"session include {tmp_path}/sshd\n")
    assert Stack(str(tmp_path / "sshd")).hooks() == []


@pytest.mark.parametrize(("text", "found"), HOLES)
def test_a_line_that_lets_users_set_variables_is_found_however_it_is_written(
    text: str, found: str | None, tmp_path: Path
) -> None:
    (tmp_path / "hole").write_text(HOLE)
    (tmp_path / "sshd").write_text(text.format(hole=tmp_path / "hole"))
    lines = Stack(str(tmp_path / "sshd")).user_readenv()
    assert [place(line) for line in lines] == ([found] if found else [])


def test_each_case_is_looked_at() -> None:
    assert {*SKIPPING, *DISPATCH, *OTHERS} == {case.name for case in CASES.iterdir()}


@pytest.mark.parametrize("case", OTHERS)
def test_what_check_says_of_the_single_line_there_and_its_commands(
    case: str, tmp_path: Path
) -> None:
    root = copied(case, tmp_path)
    (finding,) = check_pam.logins("sshd", Stack("sshd", str(root)))
    assert finding.severity == "error"
    assert finding.message.startswith("/etc/pam.d/sshd:18: a login with a key or certificate over")
    commands = finding.advice.replace("sudo ", "").replace(" /etc/", f" {root}/etc/")
    subprocess.run(["/bin/sh", "-euc", commands], check=True, stdout=subprocess.DEVNULL)
    repaired = Stack("sshd", str(root))
    assert [line.number for line, _ in repaired.hooks()] == [18, 20, 21]
    assert [*check_pam.logins("sshd", repaired)] == []
    for large_key in (False, True):
        assert simulate_login(repaired, large_key=large_key).reported_once()


PERMIT = "session required pam_permit.so\n"
HOOK = "session optional pam_exec.so /opt/tattle\n"
OPENING = "session [success=1 default=ignore] pam_exec.so type=open_session /opt/tattle\n"
UNSETS = "session optional pam_env.so conffile=/unsets"


@pytest.mark.parametrize(
    ("lines", "fails", "large_key", "expected"),
    [
        (PERMIT + OPENING + HOOK, False, False, (True, [2], [])),  # at the close it jumps, too
        (PERMIT + OPENING + HOOK, True, False, (True, [2, 3], [3])),
        (f"{UNSETS}\n{HOOK}", False, True, (True, [2], [2])),
        (f"{UNSETS} conffile=/nothing\n{HOOK}", False, True, (True, [], [])),  # the last one counts
        ("session required pam_exec.so /bin/true\n", False, True, (False, [], [])),
    ],
)
def test_what_comes_of_a_login_comes_of_what_each_line_does(
    lines: str,
    fails: bool,
    large_key: bool,
    expected: tuple[bool, list[int], list[int]],
    tmp_path: Path,
) -> None:
    write_service(tmp_path, "etc/pam.d/sshd", lines)
    (tmp_path / "unsets").write_bytes(b"# caf\xe9\nSSH_AUTH_INFO_0 DEFAULT= OVERRIDE=\n")
    (tmp_path / "nothing").touch()
    found = simulate_login(Stack("sshd", str(tmp_path)), lambda hook: fails, large_key)
    opened, closed = ([line.number for line in end] for end in (found.opened, found.closed))
    assert (found.opens, opened, closed) == expected


def write_service(root: Path, path: str, lines: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(lines)


def test_a_service_is_read_from_etc_or_else_from_where_the_vendor_puts_it(tmp_path: Path) -> None:
    """What an editor or a package manager leaves there is none."""
    write_service(tmp_path, "etc/pam.d/sshd", PERMIT)
    for path in ("usr/lib/pam.d/sshd", "usr/lib/pam.d/su-l", "etc/pam.d/su~", "etc/pam.d/su.old"):
        write_service(tmp_path, path, HOOK)
    assert services(str(tmp_path)) == ["su-l"]
    ((hook, _),) = Stack("su-l", str(tmp_path)).hooks()
    assert hook.file == "/usr/lib/pam.d/su-l"


def test_a_line_is_added_to_a_copy_of_the_vendors_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pam_lines, "DIRECTORIES", (f"{tmp_path}/etc", f"{tmp_path}/vendors"))
    monkeypatch.setattr("sys.argv", ["/opt/tattle"])
    write_service(tmp_path, "vendors/login", PERMIT)
    (tmp_path / "etc").mkdir()
    for count in (1, 2):
        command = pam_lines.add_line("login").replace("sudo ", "")
        subprocess.run(["/bin/sh", "-euc", command], check=True, stdout=subprocess.DEVNULL)
        added = re.sub(" +", " ", (tmp_path / "etc/login").read_text())
        assert added == PERMIT + HOOK * count
    assert (tmp_path / "vendors/login").read_text() == PERMIT


class TestRhel9:
    def test_the_hook_is_where_the_line_is_and_nothing_skips_it(self) -> None:
        sshd = stack("rhel9")
        ((hook, path),) = sshd.hooks()
        assert (hook.file, hook.number, path) == ("/etc/pam.d/sshd", 18, "/usr/local/bin/tattle")
        assert sshd.skipping(hook) is None
        assert sshd.user_readenv() == []

    def test_no_other_service_runs_it(self) -> None:
        assert services(str(CASES / "rhel9")) == ["sshd"]

    @pytest.mark.parametrize(("base", "variant"), [("su", "su-l"), ("sudo", "sudo-i")])
    def test_login_variants_include_their_base(
        self, base: str, variant: str, tmp_path: Path
    ) -> None:
        root = copied("rhel9", tmp_path)
        with (root / f"etc/pam.d/{base}").open("a") as file:
            file.write("session optional pam_exec.so seteuid /usr/local/bin/tattle\n")
        assert services(str(root)) == sorted(["sshd", base, variant])

    def test_what_authselect_wrote_is_read_through_its_links(self, tmp_path: Path) -> None:
        root = copied("rhel9", tmp_path)
        with (root / "etc/authselect/postlogin").open("a") as file:
            file.write("session required pam_env.so user_readenv=1\n")
        (line,) = Stack("sshd", str(root)).user_readenv()
        assert place(line) == "postlogin:5"


def copied(case: str, folder: Path) -> Path:
    """Copy a case, with its links."""
    shutil.copytree(CASES / case, folder / case, symlinks=True)
    return folder / case
