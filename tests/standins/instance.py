"""A throwaway EC2 instance: namespaces of its own in which nothing needs configuring, as on EC2.

Inside, IMDS answers at 169.254.169.254, EventBridge's real host name resolves to a TLS stand-in
whose CA root's ~/.aws/config names, and a real sshd with the distribution's own PAM stack lets in
`ubuntu` and `alice`. The stand-ins are threads of the test's process, with sockets made inside.
Everything ends with the test's process, however that ends.

The machine is left alone: its files are read-only in there and /etc is a copy. All that is done to
the instance goes by descriptors of its namespaces and its root, opened once: its first process's id
may be another's later. Where that can't be relied on (see confinement.py), no instance starts.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from standins import confinement, pam_exec
from standins.ca import Ca
from standins.eventbridge import EventBridge
from standins.imds import Imds, identity_document
from standins.server import bind
from standins.syslogd import Line, Syslog

SETUP = Path(__file__).with_name("instance_setup.sh")
OTHER_ROOT = Path(__file__).with_name("instance_root.sh")
SYSTEM_PYTHON = "/usr/bin/python3"
TATTLE = "/usr/local/bin/tattle"
SPOOL = "/var/spool/tattle"
PAM_ENVIRONMENT = "/etc/tattle-env.conf"  # what pam_env reads
BOOT_ID = "/proc/sys/kernel/random/boot_id"
EVENTBRIDGE_HOST = "events.us-east-1.amazonaws.com"
HOSTNAME = "ip-10-0-0-5"
INSTANCE_ID = str(identity_document()["instanceId"])
INSTANCE_ID_FILE = "/run/cloud-init/.instance-id"  # and the firmware's, where there is one
REMOTE_HOST = "1.2.3.4"  # an address of lo inside, for logins from somewhere else
USERS = {"ubuntu": 6001, "alice": 6002}
STARTUP_SECONDS = 20  # a failure, not a limit that is tested
STRACE_LOG = "/tmp/strace.log"
ON_A_TERMINAL = (  # a command that runs another one there
    *(SYSTEM_PYTHON, "-IS", "-c"),
    Path(__file__).with_name("terminal.py").read_text(),
)
TTY = "ssh"  # what sshd gives PAM as the terminal before there is one

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}

Text = Union[str, bytes]
Variables = Iterable[tuple[Text, Text]]


@dataclass(frozen=True)
class HookResult:
    """How one run of the hook went, as its parent saw it."""

    returncode: int
    """Negative: the signal that killed it."""
    started: float
    """time.monotonic(), comparable with the stand-ins' times."""
    seconds: float
    cpu_seconds: float
    max_rss_kib: int
    """At least what the process that forked it takes, some 12,000."""
    pid: int
    """Inside the instance."""
    output: bytes = b""
    """With stdout=True only."""


@dataclass(frozen=True)
class Process:
    pid: int
    """Inside the instance, as is `parent`."""
    parent: int
    state: str
    """A letter as in proc(5): R, S, D, Z, …"""
    command: list[str]


@dataclass(frozen=True)
class Hook:
    """One run of the hook: what pam_exec puts into its environment, and around it.

    `before` is the PAM environment, which a user may have a hand in; pam_exec's own items follow.
    An item that is None is left out, as pam_exec leaves out those that aren't set.
    """

    type: str = "open_session"
    user: Text | None = "ubuntu"
    rhost: Text | None = REMOTE_HOST
    tty: Text | None = TTY
    ruser: Text | None = None
    service: Text | None = "sshd"
    before: Variables = ()
    arguments: Sequence[str] = ()
    """After the path on the PAM line, such as --wait=5."""
    path: str = TATTLE
    wrapper: Sequence[str] = ()
    """A command that runs the hook, such as ["/usr/bin/prlimit", "--fsize=0"]."""
    strace: Sequence[str] | None = None
    """Options: the hook is traced by a strace that is not its parent, with -f and to STRACE_LOG."""
    stdout: bool = False
    """As with pam_exec's option of that name: wait for the end of its output, and keep it."""

    def environment(self) -> list[tuple[Text, Text]]:
        items = {
            "PAM_SERVICE": self.service,
            "PAM_USER": self.user,
            "PAM_TTY": self.tty,
            "PAM_RHOST": self.rhost,
            "PAM_RUSER": self.ruser,
            "PAM_TYPE": self.type,
        }
        return [*self.before, *((name, item) for name, item in items.items() if item is not None)]

    def command(self) -> list[str]:
        hook = [*self.wrapper, self.path, *self.arguments]
        if self.strace is None:
            return hook
        return ["/usr/bin/strace", "-D", "-f", "-o", STRACE_LOG, *self.strace, "--", *hook]


def prepared(code: str) -> list[str]:
    """A hook's wrapper: Python runs that code, then becomes the hook. env drops LC_CTYPE, its
    gift."""
    become = "os.execv('/usr/bin/env', ['env', '-u', 'LC_CTYPE', *sys.argv[1:]])"
    modules = "import ctypes, os, resource, signal, subprocess, sys"
    return [SYSTEM_PYTHON, "-ISc", f"{modules}\n{code}\n{become}"]


class Session:
    """A process that stands for one sshd session process and runs hooks as pam_exec does: a hook
    run at open and one run at close have the same parent. It runs none any more on leaving the
    context, and stays, as an open session does, until the instance is reset."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __enter__(self) -> Session:
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if exception:  # a hook that hangs is not waited for
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def run(self, *hooks: Hook) -> list[HookResult]:
        """Run hooks at the same time; their results in the same order."""
        jobs = [
            {
                "command": hook.command(),
                "environment": [[_text(name), _text(value)] for name, value in hook.environment()],
                "stdout": hook.stdout,
            }
            for hook in hooks
        ]
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the session process has died"
        return [
            HookResult(**{**result, "output": os.fsencode(result["output"])})
            for result in json.loads(answer)
        ]

    def hook(self, type: str = "open_session", **hook: Any) -> HookResult:  # noqa: A002
        """Run one hook; its settings are Hook's."""
        return self.run(Hook(type, **hook))[0]


def _text(value: Text) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else value


class Instance:
    """A context manager: the instance is there while entered.

    `artifact`: the hook to install as /usr/local/bin/tattle, a file or a script's text.
    `root`: a folder to use for /, of a debootstrap for one; nothing is written to it.
    """

    TOOLS = ("unshare", "nsenter", "setpriv", "ip", "hostname", "sshd", "ssh", "ssh-keygen")

    def __init__(
        self,
        artifact: Path | str | None = None,
        *,
        root: Path | None = None,
    ) -> None:
        self._artifact = artifact
        self._sshd_config: tuple[str, ...] = ()
        self._other_root = root
        self._closing = ExitStack()
        self._originals: dict[str, bytes | None] = {}  # of files written since the last reset
        self._sshd_pid = 0

    # Coming and going

    def __enter__(self) -> Instance:
        with ExitStack() as closing:
            self._start(closing)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _start(self, closing: ExitStack) -> None:
        if reason := confinement.missing():
            raise RuntimeError(f"no instance: it needs {reason}")
        # The files in it are mounted inside; that done, nothing needs to find them here.
        with tempfile.TemporaryDirectory(prefix="instance-") as folder:
            boot_id = Path(folder, "boot_id")
            boot_id.write_text(boot := _uuid())
            self.syslog = closing.enter_context(Syslog(Path(folder, "log")))
            self.pid = self._start_namespaces(closing, boot_id)
            self._open(closing)
        self._be_sure(boot)
        self.ca = _ca()
        namespace = self.network
        addresses = ["169.254.169.254"]
        if "fd00:ec2::254" in self.run(["ip", "address", "show", "dev", "lo"]).stdout:
            addresses.append("fd00:ec2::254")
        imds = Imds(*(bind(address, 80, namespace) for address in addresses))
        self.imds = closing.enter_context(imds)
        eventbridge = EventBridge(bind("127.0.0.1", 443, namespace), ca=self.ca)
        self.eventbridge = closing.enter_context(eventbridge)
        self._furnish()
        self.start_sshd()
        self.keep()

    def _start_namespaces(self, closing: ExitStack, boot_id: Path) -> int:
        """Start the first process; its id on the machine."""
        starter = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"),
                "--kill-child",
                "/bin/sh",
                *([] if self._other_root is None else [str(OTHER_ROOT), str(self._other_root)]),
                *(str(SETUP), HOSTNAME, INSTANCE_ID, str(boot_id), str(self.syslog.path)),
            ],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt from the keyboard is for the tests
        )
        closing.callback(starter.communicate)
        closing.callback(starter.kill)
        assert starter.stdout
        assert starter.stderr
        pid = starter.stdout.readline()
        if starter.stdout.readline() != "ready\n":
            raise RuntimeError(f"no instance: {starter.stderr.read().strip()}")
        return int(pid)

    def _open(self, closing: ExitStack) -> None:
        """Open the root directory and the namespaces. They are named by this process's descriptors,
        which the processes that it starts can also open."""

        def opened(path: str, flags: int) -> str:
            fd = os.open(path, flags | os.O_CLOEXEC)
            closing.callback(os.close, fd)
            return f"/proc/{os.getpid()}/fd/{fd}"

        self._root = Path(opened(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY))
        closing.callback(delattr, self, "_root")  # the number may be another directory's then
        self._namespaces = {
            name: opened(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY)
            for name in confinement.NAMESPACES
        }
        self.network = self._namespaces["net"]

    def _be_sure(self, boot: str) -> None:
        """Before anything is done to the instance: it is not the machine, and commands get there.
        No other has that boot id."""
        inside = [f"/proc/self/ns/{name}" for name in confinement.NAMESPACES]
        told = self.run(["cat", BOOT_ID]).stdout, self.run(["readlink", *inside]).stdout.split()
        same = {os.readlink(path) for path in inside} & {*told[1]}
        own = [os.readlink(path) for path in self._namespaces.values()]
        if same or told != (boot, own) or self.read(BOOT_ID) != boot:
            raise RuntimeError("no instance: commands for it would not be run in it")

    def _furnish(self) -> None:
        """What a fresh instance has on its disk."""
        for name, uid in USERS.items():
            self._add_user(name, uid)
        self.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {HOSTNAME}\n")
        self.resolve(EVENTBRIDGE_HOST)
        for path in ("/etc/environment", "/etc/default/locale", "/etc/resolv.conf"):
            self._replace(path, "")
        self.write("/root/test-ca.pem", self.ca.pem)
        self.write("/root/.aws/config", "[default]\nca_bundle = /root/test-ca.pem\n", 0o600)
        for folder, pattern in (
            ("/etc/update-motd.d", "*"),
            ("/etc/ssh/sshd_config.d", "*"),
            ("/etc/ssh", "ssh_host_*"),
            ("/etc", "tattle.conf"),
        ):
            for file in self.path(folder).glob(pattern):
                file.unlink()  # this machine's, not the distribution's
        for log in ("lastlog", "wtmp", "btmp"):
            self.write(f"/var/log/{log}", "")
        private, _ = _key("host")
        self.write("/etc/ssh/ssh_host_ed25519_key", private, 0o600)
        self._stock_pam = "".join(
            line for line in _lines(self.read("/etc/pam.d/sshd")) if TATTLE not in line
        )
        self.configure_pam()
        if self._artifact is not None:
            self.install(self._artifact)

    def _add_user(self, name: str, uid: int) -> None:
        home = f"/home/{name}"
        accounts = {
            "/etc/passwd": f"{name}:x:{uid}:{uid}::{home}:/bin/bash\n",
            "/etc/group": f"{name}:x:{uid}:\n",
            "/etc/shadow": f"{name}:*:19000:0:99999:7:::\n",
        }
        for path, account in accounts.items():
            others = [line for line in _lines(self.read(path)) if not line.startswith(f"{name}:")]
            self.path(path).write_text("".join([*others, account]))
        private, public = _key(name)
        self.write(f"/root/.ssh/{name}", private, 0o600)
        self.write(f"{home}/.ssh/authorized_keys", public, 0o600)
        for owned in (home, f"{home}/.ssh", f"{home}/.ssh/authorized_keys"):
            os.chown(self.path(owned), uid, uid)
        self.path(home).chmod(0o755)
        self.path(f"{home}/.ssh").chmod(0o700)

    # Its files

    def path(self, inside: str) -> Path:
        """A file of the instance, as the machine reaches it: follows symbolic links as the instance
        would (left to the machine, those to absolute paths would lead out of it)."""
        parts = Path(inside).parts[1:]
        reached = self._root
        for index, part in enumerate(parts):
            if (reached / part).is_symlink():
                target = os.readlink(reached / part)
                base = "/" / reached.relative_to(self._root)
                return self.path(os.path.normpath(base.joinpath(target, *parts[index + 1 :])))
            reached /= part
        return reached

    def read(self, inside: str) -> str:
        return self.path(inside).read_text(errors="surrogateescape")

    def write(self, inside: str, content: Text, mode: int = 0o644, owner: str = "root") -> None:
        """Write a file, with the folders above it. A reset brings back what was there before."""
        path = self.path(inside)
        if inside not in self._originals:
            self._originals[inside] = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(content))
        path.chmod(mode)
        os.chown(path, USERS.get(owner, 0), USERS.get(owner, 0))

    def _replace(self, inside: str, content: Text) -> None:
        """Write a file in place of what is there, a symbolic link maybe."""
        path = self.path(os.path.dirname(inside)) / os.path.basename(inside)
        path.unlink(missing_ok=True)
        path.write_bytes(os.fsencode(content))

    def install(self, artifact: Path | str) -> None:
        """Put the hook, a file or a script's text, at its place."""
        content = artifact.read_bytes() if isinstance(artifact, Path) else artifact.encode()
        new = self.path(TATTLE + ".new")
        new.write_bytes(content)
        new.chmod(0o755)
        new.rename(self.path(TATTLE))

    def uninstall(self) -> None:
        """Take the hook and its PAM line away, until the next reset."""
        self.write("/etc/pam.d/sshd", self._stock_pam)
        self.path(TATTLE).unlink(missing_ok=True)

    def resolve(self, host: str, address: str = "127.0.0.1") -> None:
        """Have a host name resolve to that address; the stand-in shows a certificate for any."""
        kept = [line for line in _lines(self.read("/etc/hosts")) if host not in line.split()]
        self.write("/etc/hosts", "".join([*kept, f"{address} {host}\n"]))

    def spool(self) -> list[str]:
        """The names of the records in tattle's spool and of what is foreign there, sorted."""
        spool = self.path(SPOOL)
        names = os.listdir(spool) if spool.is_dir() else []
        own = (".deliverer", ".standby", ".fault", ".fault.new", ".wake", "open")
        return sorted(name for name in names if name not in own)

    def records(self) -> list[str]:
        """The names of the records in tattle's spool, sorted."""
        return [name for name in self.spool() if re.fullmatch(r"\d{20}-\d+", name)]

    def accept(self, *users: str) -> list[str]:
        """Have one event of each user accepted and not delivered; the records' names."""
        with self.locked(), self.session() as session:
            for user in users:
                assert session.hook(user=user).returncode == 0
        return self.records()

    def arrived(self) -> Counter[str]:
        """How many events of each user EventBridge has."""
        return Counter(detail["username"] for detail in self.eventbridge.details())

    @contextmanager
    def locked(self) -> Iterator[Path]:
        """Hold the spool's lock, so that hooks leave their records to somebody else."""
        spool = self.path(SPOOL)
        spool.mkdir(0o700, exist_ok=True)
        let_go = threading.Event()

        def show_signs_of_life() -> None:
            while not let_go.wait(1):
                for file in files:
                    os.utime(file.fileno())

        with ExitStack() as held:
            locks = (spool / ".standby", spool / ".deliverer")  # in a deliverer's order
            files = [held.enter_context(open(path, "a")) for path in locks]
            for file in files:
                fcntl.flock(file, fcntl.LOCK_EX)
            started = self.read("/proc/1/stat").rpartition(")")[2].split()[19]
            held.callback(files[0].truncate, 0)
            files[0].truncate(0)
            files[0].write(f"1 {started} {os.readlink(self._root / 'proc/1/ns/pid')}")
            files[0].flush()
            for file in files:
                os.utime(file.fileno())
            thread = threading.Thread(target=show_signs_of_life)
            thread.start()
            held.callback(thread.join)
            held.callback(let_go.set)
            yield spool

    # Its processes

    def enter(self, command: Sequence[Text], user: str = "root") -> list[Text]:
        """The machine's command that runs a command inside."""
        into = [
            f"--{confinement.NAMESPACES[name]}={path}" for name, path in self._namespaces.items()
        ]
        into += [f"--root={self._root}", f"--wd={self._root}"]
        become: list[Text] = []
        if user != "root":
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return ["nsenter", *into, "--", *become, *command]

    def popen(
        self,
        command: Sequence[Text],
        *,
        env: Mapping[str, str] | None = None,
        user: str = "root",
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command inside. `env` is added to a minimal environment."""
        identity = {} if user == "root" else {"HOME": f"/home/{user}", "USER": user}
        return subprocess.Popen(
            self.enter(command, user),
            env={**ENVIRONMENT, **identity, **(env or {})},
            cwd="/",
            encoding="utf-8",
            errors="surrogateescape",
            **options,
        )

    def run(
        self,
        command: Sequence[Text],
        *,
        input: str | None = None,  # noqa: A002
        timeout: float = 60,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; the options are popen's."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        pipe = subprocess.PIPE
        with self.popen(command, stdin=stdin, stdout=pipe, stderr=pipe, **options) as process:
            try:
                output, errors = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(command, process.returncode, output, errors)
        if check and done.returncode:
            raise RuntimeError(f"{done}")
        return done

    def processes(self, containing: str = "", *, sessions: bool = False) -> list[Process]:
        """What runs inside, but for the first process, sshd's listener and, unless asked for, who
        stands for a session; only those whose command line contains that text."""
        found = []
        for folder in (self._root / "proc").iterdir():
            if folder.name.isdecimal() and folder.name not in ("1", str(self._sshd_pid)):
                command, state, parent = "", "", ""
                try:
                    while not command and state not in ("Z", "X"):  # it has none while it execs
                        command = (folder / "cmdline").read_text(errors="surrogateescape")
                        status = (folder / "stat").read_text()
                        state, parent = status.rpartition(")")[2].split()[:2]
                except OSError:
                    continue  # it has just ended
                arguments = command.rstrip("\0").split("\0")
                idle = arguments == ["sleep", "infinity"] or (
                    not sessions and "pam_exec.c of Linux-PAM" in command
                )
                if containing in " ".join(arguments) and not idle:
                    found.append(Process(int(folder.name), int(parent), state, arguments))
        return sorted(found, key=lambda process: process.pid)

    def deliverers(self) -> list[Process]:
        """The processes that hold the lock of a spool: who delivers."""
        return self._with_lock(".deliverer")

    def standbys(self) -> list[Process]:
        """Who waits to be the next one."""
        return self._with_lock(".standby")

    def _with_lock(self, name: str) -> list[Process]:
        found = []
        for process in self.processes(TATTLE):
            folder = self._root / f"proc/{process.pid}"
            with suppress(OSError):  # it has just ended
                for fd in os.listdir(folder / "fd"):
                    opened = os.path.basename(os.readlink(folder / "fd" / fd)).split()[0]
                    if opened == name and "FLOCK" in (folder / "fdinfo" / fd).read_text():
                        found.append(process)
                        break  # it may deliver from two spools
        return found

    def kill(self, *processes: Process) -> None:
        """Kill processes (SIGKILL) and wait until they are gone."""
        if processes:
            self.run(["kill", "-KILL", *(str(process.pid) for process in processes)])
        deadline = time.monotonic() + 20
        while {one.pid for one in processes} & {one.pid for one in self.processes(sessions=True)}:
            assert time.monotonic() < deadline, f"not killed: {processes}"
            time.sleep(0.005)

    def kill_deliverers(self) -> None:
        """Kill those who deliver, who are next, and who have just been started."""
        while running := self.processes(f"{TATTLE} deliver"):
            self.kill(*running)

    def orphans_cpu_seconds(self) -> float:
        """CPU time of all processes that ended as orphans, deliverers for one, and of their
        children that they waited for."""
        fields = (self._root / "proc/1/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime

    # PAM and sshd

    def configure_pam(
        self,
        *hook_arguments: str,
        control: str = "optional",
        user_readenv: bool | None = None,
        lines: str = "",
    ) -> None:
        """Write /etc/pam.d/sshd: the distribution's with our line at its end, or with those lines,
        and the file that they name. `user_readenv`: as Debian has it up to 12, or not, whatever
        this distribution is."""
        stock = self._stock_pam
        if user_readenv is not None:
            stock = stock.replace("user_readenv=1 ", "")
        if user_readenv:
            stock += "session    required     pam_env.so user_readenv=1\n"
        line = " ".join([f"session    {control}     pam_exec.so {TATTLE}", *hook_arguments])
        self.write("/etc/pam.d/sshd", stock + (lines or f"{line}\n"))
        if PAM_ENVIRONMENT in lines:
            self.write(PAM_ENVIRONMENT, "SSH_AUTH_INFO_0 DEFAULT= OVERRIDE=\n")

    def start_sshd(self, *config: str) -> None:
        """(Re)start sshd with those lines before the stock configuration's."""
        self.stop_sshd()
        lines = [*config, "ListenAddress 127.0.0.1", "UsePAM yes"]
        self.write("/etc/ssh/sshd_config.d/test.conf", "".join(f"{line}\n" for line in lines))
        self._sshd_config = config
        self.run(["/usr/sbin/sshd"], check=True)
        pid_file = self.path("/run/sshd.pid")  # written once it listens
        deadline = time.monotonic() + STARTUP_SECONDS
        while not (pid_file.exists() and (pid := pid_file.read_text().strip())):
            assert time.monotonic() < deadline, "sshd does not start"
            time.sleep(0.002)
        self._sshd_pid = int(pid)

    def stop_sshd(self) -> None:
        """Stop sshd's listener; sessions go on."""
        listener, self._sshd_pid = self._sshd_pid, 0
        self.kill(*(process for process in self.processes() if process.pid == listener))
        self.path("/run/sshd.pid").unlink(missing_ok=True)

    def ssh_command(self, program: str, *arguments: str, user: str, source: str) -> list[str]:
        """The client's command, inside, for `ssh`, `scp` or `sftp`."""
        options = [
            f"BindAddress={source}",
            f"IdentityFile=/root/.ssh/{user}",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ]
        flags = [flag for option in options for flag in ("-o", option)]
        return [program, "-F", "none", *flags, *arguments]

    def ssh(
        self,
        user: str,
        *command: str,
        source: str = REMOTE_HOST,
        options: Sequence[str] = (),
        **run_options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Log in from that address and run a command (options: ssh's, such as "-tt")."""
        arguments = [*options, f"{user}@127.0.0.1", *command]
        ssh = self.ssh_command("ssh", *arguments, user=user, source=source)
        return self.run(ssh, **run_options)

    @contextmanager
    def logged_in(self, user: str) -> Iterator[None]:
        """A session of the user's, open while entered."""
        arguments = [f"{user}@127.0.0.1", "echo in; read line"]
        command = self.ssh_command("ssh", *arguments, user=user, source=REMOTE_HOST)
        pipe = subprocess.PIPE
        with self.popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as ssh:
            assert ssh.stdout
            assert ssh.stdout.readline() == "in\n", ssh.communicate()
            yield
            ssh.communicate("\n", timeout=20)

    def scp(
        self, user: str, file: str, target: str, *, source: str = REMOTE_HOST, **run_options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Copy one of root's files inside to the user's account."""
        arguments = [file, f"{user}@127.0.0.1:{target}"]
        scp = self.ssh_command("scp", *arguments, user=user, source=source)
        return self.run(scp, **run_options)

    def sftp(
        self, user: str, batch: str, *, source: str = REMOTE_HOST, **run_options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a batch of sftp commands."""
        arguments = ["-b", "-", f"{user}@127.0.0.1"]
        sftp = self.ssh_command("sftp", *arguments, user=user, source=source)
        return self.run(sftp, input=batch, **run_options)

    # The hook without sshd

    def session(self) -> Session:
        source = Path(pam_exec.__file__).read_text()
        pipe = subprocess.PIPE
        return Session(self.popen([SYSTEM_PYTHON, "-IS", "-c", source], stdin=pipe, stdout=pipe))

    def hook(self, type: str = "open_session", **hook: Any) -> HookResult:  # noqa: A002
        """Run the hook once as pam_exec does; the settings are Hook's."""
        with self.session() as session:
            return session.hook(type, **hook)

    # Log, reset, reboot

    def log(self, identifier: str | None = "tattle") -> list[Line]:
        """The lines in the system's log, tattle's unless another identifier, or None, is given."""
        return self.syslog.lines(identifier)

    def log_with(self, text: str) -> list[str]:
        """tattle's messages in the log that contain a text."""
        return [line.message for line in self.log() if text in line.message]

    def boot_id(self) -> str:
        return self.read(BOOT_ID).strip()

    def reset(self) -> None:
        """As new, but quick: every process but sshd's listener is killed, the spool is empty, what
        was written is as it was before, faults are off and logs empty. Caches are kept."""
        while running := self.processes(sessions=True):
            self.kill(*running)
        self.imds.reset()
        self.eventbridge.reset()
        self.run(["ip", "address", "replace", "169.254.169.254/32", "dev", "lo"])
        for folder in ("/var/spool", "/tmp"):
            _empty(self.path(folder))
        for folder in ("/run/tattle-spool", "/run/tattle"):
            shutil.rmtree(self.path(folder), ignore_errors=True)
        self._restore()  # before what was written is again: in place of a file there may be a link
        for inside, content in self._originals.items():
            if content is None:
                self.path(inside).unlink(missing_ok=True)
            else:
                self.path(inside).write_bytes(content)
        self._originals.clear()
        self._restore()
        if self._artifact is not None:
            self.install(self._artifact)
        if not self._sshd_pid or self._sshd_config:
            self.start_sshd()
            self._originals.clear()
        self.syslog.clear()

    def replace_python(self, python: str) -> None:
        """Have /usr/bin/python3 be that interpreter of the machine's, inside."""
        told = subprocess.run(
            [python, "-IS", "-c", "import sys; print(sys.base_prefix, sys.executable, sep='\\n')"],
            capture_output=True,
            text=True,
            check=True,
        )
        prefix, executable = told.stdout.splitlines()
        executable = os.path.realpath(executable)
        if executable != os.path.realpath(SYSTEM_PYTHON):
            self.reveal(prefix)
            self.run(["mount", "--bind", executable, SYSTEM_PYTHON], check=True)

    def reveal(self, folder: str) -> None:
        """Show one of the machine's folders that lies below /root or /home, say, where the instance
        has its own: a second look at the file system does not see what is mounted on it."""
        if not self.path(folder).exists():
            script = 'mount --bind / /mnt; mkdir -p "$1"; mount --bind "/mnt$1" "$1"; umount /mnt'
            self.run(["/bin/sh", "-euc", script, "-", folder], check=True)
            self.keep()

    def keep(self) -> None:
        """Have what is there now outlast a reset."""
        self._originals.clear()
        self._pristine = self._inventory()

    def _inventory(self) -> dict[str, tuple[int, int, int]]:
        """Type and mode, owner and group of what tests may change or add to."""
        paths = [
            str(self.path(path)) for path in ("/var", "/var/spool", "/var/cache", "/usr/local/bin")
        ]
        for top in ("etc", "root", "home"):
            device = os.lstat(self._root / top).st_dev
            for folder, folders, files in os.walk(self._root / top):
                folders[:] = [
                    name
                    for name in folders  # nothing that is mounted there
                    if name != ".cache" and os.lstat(f"{folder}/{name}").st_dev == device
                ]
                paths += [folder, *(f"{folder}/{name}" for name in (*folders, *files))]
        found = {path: os.lstat(path) for path in paths}
        return {path: (s.st_mode, s.st_uid, s.st_gid) for path, s in found.items()}

    def _restore(self) -> None:
        """Remove what was added, links too, and give back modes and owners."""
        for path, now in self._inventory().items():
            before = self._pristine.get(path)
            if before is None or stat.S_IFMT(before[0]) != stat.S_IFMT(now[0]):
                if stat.S_ISDIR(now[0]):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    Path(path).unlink(missing_ok=True)
            elif before != now:
                os.chown(path, before[1], before[2], follow_symlinks=False)
                if not stat.S_ISLNK(now[0]):
                    os.chmod(path, stat.S_IMODE(before[0]))

    def reboot(self) -> None:
        """Kill every process at once, lose /run, /tmp and the caches, and come up again. The rest
        of the disk is kept, the spool too."""
        self.run(["/bin/sh", "-c", "kill -KILL -1"])
        self._sshd_pid = 0
        while running := self.processes(sessions=True):
            self.kill(*running)
        for folder in ("/run", "/tmp", "/var/cache"):
            _empty(self.path(folder))
        self.path("/run/sshd").mkdir(mode=0o755)
        self.path("/run/cloud-init").mkdir(mode=0o755)
        self.path(INSTANCE_ID_FILE).write_text(f"{INSTANCE_ID}\n")
        self.path(BOOT_ID).write_text(_uuid())
        self.start_sshd(*self._sshd_config)


@functools.cache
def _ca() -> Ca:
    """One for all instances of a run."""
    return Ca()


@functools.cache
def _key(name: str) -> tuple[bytes, bytes]:
    """A throwaway SSH key: the private one's file, the public one's line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {name}\n".encode()


def _uuid() -> str:
    return f"{uuid.uuid4()}\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
