"""recipes/tattle.cil, compiled and linked with a small policy of ours that has RHEL's names, and
what `tattle check` finds out about SELinux. That the rules suffice, only a login shows."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT, need
from tattle.shell import selinux

MODULE = ROOT / "src/tattle/recipes/tattle.cil"
BASE = Path(__file__).parent / "selinux/base.cil"
SSHD_SESSION = Path(__file__).parent / "selinux/sshd_session.cil"  # in newer policies only

RULES = """
allow tattle_login var_spool_t:dir { add_name getattr open read search write };
allow tattle_login var_run_t:dir { add_name getattr open read search write };
allow tattle_login var_t:dir { add_name getattr open read search write };
allow tattle_login fs_t:filesystem getattr;
allow tattle_login tattle_file:dir { add_name create getattr ioctl lock open read remove_name \
rename reparent rmdir search setattr watch write };
allow tattle_login tattle_file:file { append create getattr ioctl lock open read rename setattr \
unlink write };
allow init_t tattle_spool_t:dir mounton;
allow init_t tattle_cache_t:dir { create mounton setattr };
allow tattle_login bin_t:file { execute execute_no_trans getattr ioctl map open read };
allow tattle_login bin_t:lnk_file { getattr read };
allow tattle_login ssh_keygen_exec_t:file { execute execute_no_trans getattr map open read };
allow tattle_login sysfs_t:dir search;
allow tattle_login sysfs_t:file { getattr open read };
allow tattle_login sysfs_t:lnk_file read;
allow tattle_login cgroup_t:dir { getattr search };
allow tattle_login cgroup_t:file { getattr ioctl open write };
allow tattle_login dns_port_t:tcp_socket name_connect;
allow tattle_login http_port_t:tcp_socket name_connect;
allow tattle_login http_cache_port_t:tcp_socket name_connect;
allow tattle_login squid_port_t:tcp_socket name_connect;
allow tattle_login hi_reserved_port_t:tcp_socket name_bind;
allow tattle_login admin_home_t:dir { getattr open read search };
allow tattle_login admin_home_t:file { getattr ioctl open read };
"""
RULES_OF_EACH_LOGIN_PROGRAM = """
allow {domain} {domain}:process {{ setrlimit setsched }};
allow {domain} {domain}:udp_socket {{ connect create getattr getopt ioctl read setopt write }};
allow {domain} {domain}:tcp_socket {{ bind connect create getattr getopt ioctl read setopt \
shutdown write }};
"""
TRANSITIONS_OF_EACH_DOMAIN = """
type_transition {domain} var_spool_t:dir tattle_spool_t tattle;
type_transition {domain} var_run_t:dir tattle_spool_t tattle-spool;
type_transition {domain} var_t:dir tattle_cache_t tattle;
type_transition {domain} var_run_t:dir tattle_cache_t tattle;
"""
EVERY_KIND_OF_RULE = ["--allow", "--allowxperm", "--auditallow", "--dontaudit", "--role_allow"]
EVERY_KIND_OF_RULE += ["--type_trans", "--type_change", "--type_member"]
EVERY_KIND_OF_RULE += ["--role_trans", "--range_trans"]
LOGIN_PROGRAMS = ["local_login_t", "sshd_t"]
UNCONFINED = ["unconfined_service_t", "unconfined_t"]
OTHERS = ["user_t", "staff_t", "staff_sudo_t", "httpd_t"]


class Policy:
    """These CIL files, linked: its rules, and every attribute with the types that have it."""

    def __init__(self, folder: Path, *sources: Path) -> None:
        for tool, package in (("secilc", "secilc"), ("sesearch", "setools")):
            need(shutil.which(tool), f"needs {tool} (Debian's package: {package})")
        self.binary, self.contexts = str(folder / "policy"), folder / "file_contexts"
        run("secilc", "-o", self.binary, "-f", str(self.contexts), *map(str, sources))
        self.rules = set(run("sesearch", *EVERY_KIND_OF_RULE, self.binary))
        self.attributes: dict[str, set[str]] = {}
        for line in run("seinfo", "--attribute", "-x", self.binary):
            kind, _, name = line.strip().rstrip(";").partition(" ")
            if kind == "attribute":
                current = self.attributes.setdefault(name, set())
            elif self.attributes:
                current.add(kind)

    def allowed(self, target: str) -> set[str]:
        """The types and attributes that a rule allows something with files of this type."""
        return {rule.split()[1] for rule in self.rules if self._is_about(rule, 2, target)}

    def allows(self, source: str) -> set[str]:
        """The rules that allow this type something."""
        return {rule for rule in self.rules if self._is_about(rule, 1, source)}

    def _is_about(self, rule: str, place: int, type_: str) -> bool:
        words = rule.replace(":", " ").split()
        return words[0] == "allow" and type_ in (
            words[place],
            *self.attributes.get(words[place], ()),
        )


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line]


def lines(text: str, **values: str) -> set[str]:
    return set(filter(None, (text.format(**values) if values else text).splitlines()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(tmp_path_factory.mktemp("base"), BASE)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(tmp_path_factory.mktemp("policy"), BASE, MODULE)


def test_the_module_adds_the_rules_listed_here_and_no_others(base: Policy, policy: Policy) -> None:
    expected = lines(RULES)
    for domain in LOGIN_PROGRAMS:
        expected |= lines(RULES_OF_EACH_LOGIN_PROGRAM, domain=domain)
    for domain in LOGIN_PROGRAMS + UNCONFINED:
        expected |= lines(TRANSITIONS_OF_EACH_DOMAIN, domain=domain)
    assert policy.rules - base.rules == expected
    assert base.rules <= policy.rules


def test_its_types_are_no_more_than_file_types(base: Policy, policy: Policy) -> None:
    types = {"tattle_spool_t", "tattle_cache_t"}
    assert policy.attributes == {
        **base.attributes,
        "file_type": base.attributes["file_type"] | types,
        "tattle_login": set(LOGIN_PROGRAMS),
        "tattle_file": types,
    }


def test_sshds_session_domain_is_a_login_program_where_the_policy_has_it(tmp_path: Path) -> None:
    policy = Policy(tmp_path, BASE, SSHD_SESSION, MODULE)
    assert policy.attributes["tattle_login"] == {*LOGIN_PROGRAMS, "sshd_session_t"}
    assert lines(TRANSITIONS_OF_EACH_DOMAIN, domain="sshd_session_t") <= policy.rules


@pytest.mark.parametrize("type_", ["tattle_spool_t", "tattle_cache_t"])
def test_only_login_programs_unconfined_domains_systemd_and_restorecon_have_access(
    policy: Policy, type_: str
) -> None:
    allowed = policy.allowed(type_)
    assert allowed == {"tattle_login", "files_unconfined_type", "init_t", "setfiles_t"}
    for domain in OTHERS:
        assert not [name for name in allowed if domain in policy.attributes.get(name, {name})]
    assert policy.allows(type_) == {"allow file_type fs_t:filesystem associate;"}


def test_folders_get_their_labels(policy: Policy) -> None:
    assert sorted(policy.contexts.read_text().splitlines()) == [
        "/run/tattle(/.*)?\tsystem_u:object_r:tattle_cache_t:s0",
        "/run/tattle-spool(/.*)?\tsystem_u:object_r:tattle_spool_t:s0",
        "/var/cache/tattle(/.*)?\tsystem_u:object_r:tattle_cache_t:s0",
        "/var/run/tattle(/.*)?\tsystem_u:object_r:tattle_cache_t:s0",
        "/var/run/tattle-spool(/.*)?\tsystem_u:object_r:tattle_spool_t:s0",
        "/var/spool/tattle(/.*)?\tsystem_u:object_r:tattle_spool_t:s0",
    ]


def test_check_knows_the_labels_and_the_commands_of_the_module() -> None:
    text = MODULE.read_text()
    labels = dict(
        re.findall(r'^\(filecon "(.*)\(/\.\*\)\?" any \(\S+ \S+ (\S+)', text, re.MULTILINE)
    )
    labels = {path: label for path, label in labels.items() if not path.startswith("/var/run/")}
    assert labels == selinux.TYPES
    for command in selinux.INSTALL.replace("sudo ", "").split(" && "):
        assert f";   {command}\n" in text


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like /sys/fs/selinux, enforcing, with the module loaded: any context is valid.
    To the probe we are root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    folder = tmp_path / "selinux"
    folder.mkdir()
    (folder / "enforce").write_text("1")
    (folder / "context").touch()
    return folder


def unload_module(kernel: Path) -> None:
    """Let a context be refused as the kernel refuses one that the policy does not know."""
    (kernel / "context").unlink()
    (kernel / "context").symlink_to("/proc/self/oom_score_adj")  # EINVAL for what is no number


def label(patch: pytest.MonkeyPatch, contexts: dict[str, bytes]) -> dict[str, str]:
    """Give folders these labels, "" for none, as getxattr(2) tells them; return which they need.
    (To label a folder takes root, and a kernel where SELinux has no say in it.)"""

    def getxattr(path: str, name: str) -> bytes:
        assert name == "security.selinux"
        if path not in contexts:
            raise FileNotFoundError(errno.ENOENT, path)
        if not contexts[path]:
            raise OSError(errno.ENODATA, path)
        return contexts[path]

    patch.setattr(os, "getxattr", getxattr)
    return {"/spool": "tattle_spool_t", "/cache": "tattle_cache_t"}


def test_a_missing_module_is_found(kernel: Path) -> None:
    unload_module(kernel)
    (found,) = selinux.probe(kernel, {})
    assert found.message == "SELinux is enforcing and lets no login program use tattle"
    assert (found.severity, found.advice) == ("error", selinux.INSTALL)


@pytest.mark.parametrize("mode", ["permissive", "absent"])
def test_selinux_is_in_nobodys_way_unless_it_is_enforcing(kernel: Path, mode: str) -> None:
    unload_module(kernel)
    (kernel / "enforce").write_text("0")
    if mode == "absent":
        (kernel / "enforce").unlink()
    (found,) = selinux.probe(kernel, {})
    assert (found.severity, found.message) == ("ok", mode)


@pytest.mark.parametrize("context", [b"system_u:object_r:var_spool_t:s0\0", b"nonsense\0", b""])
def test_a_wrong_label_is_found(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, context: bytes
) -> None:
    (found,) = selinux.probe(kernel, label(monkeypatch, {"/spool": context}))
    assert found.message == "SELinux is enforcing; wrong label: /spool"
    assert (found.severity, found.advice) == ("error", selinux.RESTORE)


def test_right_labels_and_folders_that_are_not_there_yet_are_fine(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = label(monkeypatch, {"/cache": b"unconfined_u:object_r:tattle_cache_t:s0\0"})
    (found,) = selinux.probe(kernel, types)
    assert (found.severity, found.message) == ("ok", "enforcing")
