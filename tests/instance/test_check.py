"""`tattle check`: the faults that it knows of this host are provoked, and what it says to do fixes
them.

Those of AWS: messages.py and unit/test_aws_messages.py. How findings are printed:
unit/test_check_probes.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import readme_blocks as readme
from check_json import IDS, Finding, check, faults
from standins.eventbridge import Rejection
from standins.instance import (
    EVENTBRIDGE_HOST,
    HOSTNAME,
    ON_A_TERMINAL,
    PAM_ENVIRONMENT,
    SPOOL,
    TATTLE,
    Instance,
)
from standins.large_keys import certificate
from standins.server import bind
from support import changed, eventually

pytestmark = pytest.mark.root

CONF = "/etc/tattle.conf"
PAM = "/etc/pam.d/sshd"
LINE = f"session optional pam_exec.so {TATTLE}"
REFUSING = LINE.replace("optional", "[success=ok default=die]")
LINES = readme.text("the-pam-lines")
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"
COMMANDS = (  # what an advice may begin with
    *("authselect", "chmod", "chown", "cp", "echo", "install", "mount", "printf", "restorecon"),
    *("rm", "sed", "sh", "sudo", "tattle"),
)
LONGEST_SECONDS = 12.0  # a check, however broken the host is


@pytest.fixture
def box(instance: Instance) -> Instance:
    """The instance with nothing wrong."""
    instance.configure_pam(user_readenv=False, lines=LINES)
    return instance


def command(advice: str) -> str:
    """The command in an advice: its end, from the first word that can be run."""
    found = re.search(rf"(^|: )(({'|'.join(COMMANDS)}) .*)", advice)
    assert found, advice
    return re.split(r" && .*systemctl", found[2])[0]


def follow(box: Instance, *findings: Finding) -> None:
    """Do what is advised, by the commands in it."""
    for one in dict.fromkeys(command(finding.advice) for finding in findings):
        box.run(["/bin/sh", "-ec", one], check=True)


def the_fault(box: Instance) -> Finding:
    """The only one."""
    found = faults(check(box))
    assert len(found) == 1, found
    return next(iter(found.values()))


def is_fixed(box: Instance, *findings: Finding) -> None:
    """Following the advice makes all well."""
    follow(box, *findings)
    assert faults(check(box)) == {}


def test_where_all_is_well_there_is_a_line_for_each_thing_and_the_status_is_0(
    box: Instance,
) -> None:
    done = box.run([TATTLE, "check"])
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert last == "0 errors, 0 warnings, 19 ok, 1 skipped"
    assert lines.pop() == "- send: only with --send"
    assert all(line.startswith("✓ ") for line in lines), done.stdout
    found = {line[2:].partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert [name.partition(" ")[0] for name in found] == IDS[:-1]
    version = r"tattle \d\S+ of [0-9-]+, build [0-9a-f]{12}, Python 3\.\S+, botocore 1\.42\.\d+"
    version += r"; \d+ days old"
    assert re.fullmatch(version, found["versions"])
    assert TATTLE in found["pam sshd"]
    assert PAM in found["pam sshd"]
    assert found["identity"] == ARN
    assert EVENTBRIDGE_HOST in found["endpoint"]
    assert box.eventbridge.entries() == []
    assert box.log() == []


def runs(path: str) -> str:
    return f"session optional pam_exec.so {path}\n"


PERMIT = "session required pam_permit.so\n"
PAM_FAULTS = {  # each in the stack of a service of its own, and what is said of it
    "none": (PERMIT, "no line runs tattle"),
    "unended": (PERMIT.strip(), "no line runs tattle"),
    "of-auth": (LINE.replace("session", "auth"), "runs tattle for auth, not for session"),
    "of-account": (LINE.replace("session", "account"), "runs tattle for account, not for session"),
    "opened": (
        LINE.replace("/", "type=open_session /", 1),
        "nothing reports `closed`",
    ),
    "closed": (
        LINE.replace("/", "type=close_session /", 1),
        "nothing reports `opened`",
    ),
    "missing": (runs("/usr/local/bin/tattle-missing"), "tattle-missing, which does not exist"),
    "another": (runs("/usr/local/bin/tattle-another"), "which is not the same as this one"),
    "mode": (runs("/usr/local/bin/tattle-mode"), "tattle-mode is not executable"),
    "writable": (runs("/usr/local/bin/tattle-writable"), "tattle-writable belongs to or can be"),
    "owned": (runs("/usr/local/bin/tattle-owned"), "tattle-owned belongs to or can be written"),
    "folder": (runs("/etc/open/tattle"), "/etc/open belongs to or can be written"),
    "twice": (f"{LINE}\n{LINE}\n", "more than once, .*: /etc/pam.d/twice:1, /etc/pam.d/twice:2"),
    "su": (f"{PERMIT}{REFUSING}\n", "/etc/pam.d/su:2 has no seteuid"),
    "sudo": (f"{PERMIT}{REFUSING}\n", "/etc/pam.d/sudo:2 has no seteuid"),
}


class TestPam:
    """The line in each service's stack. How it may be written: unit/test_pamd.py."""

    def test_no_line_in_sshds_stack(self, box: Instance) -> None:
        box.write(PAM, box.read(PAM).replace(TATTLE, "/bin/true"))
        finding = the_fault(box)
        assert finding.name == "pam sshd"
        is_fixed(box, finding)
        assert box.ssh("ubuntu", "true").returncode == 0
        assert len(box.eventbridge.wait_for(2)) == 2

    def test_a_line_that_is_wrong_is_found_in_any_service_and_the_advice_fixes_it(
        self, box: Instance, artifact: Path
    ) -> None:
        for service, (stack, _) in PAM_FAULTS.items():
            box.write(f"/etc/pam.d/{service}", stack)
        for base, variant in (("su", "su-l"), ("sudo", "sudo-i")):
            box.write(f"/etc/pam.d/{variant}", f"session include {base}\n")
        box.write(CONF, "[service none]\nsource = a\n[service unended]\nsource = b\n")
        box.write("/usr/local/bin/tattle-another", "#!/bin/sh\n", 0o755)
        box.write("/usr/local/bin/tattle-mode", artifact.read_bytes(), 0o644)
        box.write("/usr/local/bin/tattle-writable", artifact.read_bytes(), 0o775)
        box.write("/usr/local/bin/tattle-owned", artifact.read_bytes(), 0o755, owner="alice")
        box.write("/etc/open/tattle", artifact.read_bytes(), 0o755)
        box.path("/etc/open").chmod(0o777)
        box.write("/usr/local/bin/tattle-missing", "")  # so that a reset removes it
        box.path("/usr/local/bin/tattle-missing").unlink()
        box.write("/etc/pam.d/linked", runs("/etc/tattle-link"))  # nothing is wrong with that
        (box.path("/etc") / "tattle-link").symlink_to(TATTLE)
        found = faults(check(box))
        assert {*found} == {f"pam {name}" for name in (*PAM_FAULTS, "su-l", "sudo-i")}
        for service, (_, message) in PAM_FAULTS.items():
            finding = found[f"pam {service}"]
            assert finding.severity == "error"
            assert re.search(message, finding.message), finding
        is_fixed(box, *found.values())
        line = f"session    optional     pam_exec.so {TATTLE}\n"
        assert box.read("/etc/pam.d/unended") == f"{PERMIT}{line}"
        assert box.read("/etc/pam.d/twice") == f"{LINE}\n"

    def test_a_service_without_a_file_and_a_line_that_another_jumps_over(
        self, box: Instance
    ) -> None:
        stock = [line for line in box.read(PAM).splitlines(keepends=True) if TATTLE not in line]
        jump = "session [success=1 default=ignore] pam_succeed_if.so user = ubuntu\n"
        box.write(PAM, "".join([*stock, jump, f"{LINE}\n", PERMIT]))
        box.write(CONF, "[service cockpit]\ndetail-type = cockpit\n")
        found = faults(check(box))
        assert {*found} == {"pam sshd", "pam cockpit"}
        number = len(stock) + 1
        message = f"{PAM}:{number + 1} can be skipped by {PAM}:{number}"
        assert found["pam sshd"].message == message
        assert "no /etc/pam.d/cockpit" in found["pam cockpit"].message
        assert CONF in found["pam cockpit"].advice
        assert box.ssh("ubuntu", "true").returncode == 0
        assert box.spool() == []
        assert box.eventbridge.entries() == []

    @pytest.mark.parametrize(("su", "sudo"), [("su", "sudo"), ("su-l", "sudo-i")])
    def test_a_login_variant_that_is_not_covered_though_the_other_is(
        self, su: str, sudo: str, box: Instance
    ) -> None:
        """As of util-linux 2.42 and Debian's sudo: neither includes anything of the other's."""
        for service in ("su", "su-l", "sudo", "sudo-i"):
            line = REFUSING.replace("exec.so", "exec.so seteuid") + "\n"
            box.write(f"/etc/pam.d/{service}", PERMIT + (line if service in (su, sudo) else ""))
        found = check(box)
        warnings = [finding for finding in found if finding.severity == "warning"]
        assert {*faults(found).values()} == {*warnings}
        others = {"su", "su-l", "sudo", "sudo-i"} - {su, sudo}
        assert {finding.name for finding in warnings} == {f"pam {other}" for other in others}
        is_fixed(box, *warnings)

    @pytest.mark.parametrize(
        "control", ["optional", "[success=ok module_unknown=die default=ignore]", "sufficient"]
    )
    def test_a_line_for_sudo_that_lets_go_who_has_the_hook_killed(
        self, control: str, box: Instance
    ) -> None:
        line = LINE.replace("optional", control).replace("exec.so", "exec.so seteuid")
        box.write("/etc/pam.d/doas", f"{PERMIT}{line}\n")
        finding = the_fault(box)
        assert (finding.name, finding.severity) == ("pam doas", "warning")
        is_fixed(box, finding)
        assert REFUSING.replace("exec.so", "exec.so seteuid") in box.read("/etc/pam.d/doas")


BEFORE_WAIT = readme.text("lines-before-wait")
WAITING = LINE.replace(TATTLE, f"{TATTLE} --wait=1")
UNREPORTED = f"{PAM}:.*: a login with a key or certificate over 128 KiB is not reported"
# Lines in sshd's stack, what is said of them, and what they are once the advice is followed.
# Options on a line stay; `required` refuses what can't be reported.
OF_SSHD = [
    (LINE, UNREPORTED, LINES),
    (LINE.replace("pam_exec.so", "\\\n  pam_exec.so"), UNREPORTED, LINES),
    (WAITING, UNREPORTED, BEFORE_WAIT + WAITING),
    (LINE.replace("so", "so quiet"), UNREPORTED, BEFORE_WAIT + LINE.replace("so", "so quiet")),
    (LINE.replace("optional", "required"), "", ""),
    (LINE.replace("optional", "requisite"), "", ""),
    (LINE.replace("optional", "[success=ok default=die]"), "", ""),
    (WAITING.replace("optional", "required"), "", ""),
    (BEFORE_WAIT + WAITING, "", ""),
    (f"{LINE}\n{LINES}", "more than once", LINES),
    (LINES.replace("/tattle\n", "/tattle --wait=1\n"), "again where --wait is over", None),
    (LINES.replace("env.conf", "none.conf"), UNREPORTED, None),
]


class TestSshdsLines:
    @pytest.mark.parametrize(("lines", "message", "fixed"), OF_SSHD)
    def test_a_login_that_passes_unreported_or_is_reported_twice_is_found(
        self, box: Instance, lines: str, message: str, fixed: str | None
    ) -> None:
        box.configure_pam(user_readenv=False, lines=f"{lines.rstrip()}\n")
        box.write(PAM_ENVIRONMENT, "")  # for the reset
        box.path(PAM_ENVIRONMENT).unlink()
        if PAM_ENVIRONMENT in lines:
            box.write(PAM_ENVIRONMENT, "SSH_AUTH_INFO_0 DEFAULT= OVERRIDE=\n")
        found = faults(check(box))
        if message:
            assert re.search(message, found["pam sshd"].message)
            is_fixed(box, *found.values())
            assert fixed is None or box.read(PAM).endswith(f"password\n{fixed.rstrip()}\n")
        else:
            assert found == {}
        with certificate(box, "ubuntu") as options:
            entered = box.ssh("ubuntu", "true", options=options).returncode == 0
        if entered:
            states = [one.detail["session"] for one in box.eventbridge.wait_for(2)]
            assert states == ["opened", "closed"]
        else:
            assert re.search("required|requisite|die", lines)

    def test_the_file_for_pam_env_is_missing_or_others_can_write_it(self, box: Instance) -> None:
        box.write(PAM_ENVIRONMENT, "")
        finding = the_fault(box)
        assert re.search(UNREPORTED, finding.message)
        is_fixed(box, finding)
        box.path(PAM_ENVIRONMENT).chmod(0o666)
        finding = the_fault(box)
        assert finding.message.startswith(f"{PAM_ENVIRONMENT} belongs to or can be written")
        is_fixed(box, finding)


AUTHSELECT = """\
#!/bin/sh -e
# What authselect(8) does, as far as it concerns us
cd /etc/authselect
case $1 in
create-profile) mkdir -p custom/$2; cp password-auth custom/$2; [ "$3" = --base-on=sssd ] ;;
select) shift; printf '%s\\n' "$@" >authselect.conf; cp $1/password-auth . ;;
apply-changes) cp $(sed -n '/^[^#]/{p;q}' authselect.conf)/password-auth . ;;
esac
"""
HOLE = "session required pam_env.so user_readenv=1\n"


class TestTheUsersEnvironment:
    def test_stock_debian_lets_users_set_variables_and_so_may_an_included_file(
        self, box: Instance
    ) -> None:
        box.configure_pam(lines=LINES, user_readenv=True)
        box.write("/etc/elsewhere/hole", f"# a comment\n{HOLE}")
        link = box.path("/etc/pam.d") / "hole"
        link.symlink_to("/etc/elsewhere/hole")
        box.write(PAM, f"@include hole\n{box.read(PAM)}")
        lines = box.read(PAM).splitlines()
        number = next(n for n, line in enumerate(lines, 1) if "user_readenv" in line)
        found = [finding for finding in check(box) if finding.is_fault]
        assert {finding.name for finding in found} == {"environment sshd"}
        places = [finding.message.partition(" ")[0] for finding in found]
        assert places == ["/etc/pam.d/hole:2", f"{PAM}:{number}"]
        is_fixed(box, *found)
        assert link.is_symlink()
        box.write("/home/ubuntu/.pam_environment", "X DEFAULT=y\n", owner="ubuntu")
        assert box.ssh("ubuntu", "echo $X").stdout == "\n"

    @pytest.mark.parametrize("profile", ["sssd", "custom/ours"])
    @pytest.mark.parametrize(
        ("line", "name"),
        [("auth required pam_env.so user_readenv=1", "environment"), (LINE, "pam")],
    )
    def test_what_authselect_writes_is_changed_by_a_profile(
        self, profile: str, line: str, name: str, box: Instance
    ) -> None:
        """It writes /etc/authselect/password-auth, to which /etc/pam.d/password-auth is a link."""
        box.write("/usr/local/bin/authselect", AUTHSELECT, 0o755)
        box.write("/etc/authselect/authselect.conf", f"# a comment\n{profile}\nwith-sudo\n")
        box.write("/etc/authselect/password-auth", f"{line}\n{PERMIT}")
        box.write("/etc/authselect/custom/ours/password-auth", f"{line}\n{PERMIT}")
        link = box.path("/etc/pam.d") / "password-auth"
        link.symlink_to("/etc/authselect/password-auth")
        kind = line.partition(" ")[0]
        stock = box.read(PAM).replace(LINES if line == LINE else "", "")
        box.write(PAM, f"{kind} include password-auth\n{stock}")
        finding = the_fault(box)
        assert finding.name == f"{name} sshd"
        assert "authselect" in finding.advice
        is_fixed(box, finding)
        assert link.is_symlink()
        written = box.read("/etc/authselect/authselect.conf").removeprefix("# a comment\n")
        assert written in ("custom/tattle\nwith-sudo\n", "custom/ours\nwith-sudo\n")


@contextmanager
def mounted(box: Instance, *arguments: str, on: str) -> Iterator[None]:
    box.run(["mount", *arguments, on], check=True)
    try:
        yield
    finally:
        box.run(["umount", on], check=True)


class TestSshd:
    """What it may answer: unit/test_check_probes.py."""

    def test_pam_that_is_off(self, box: Instance) -> None:
        box.write("/etc/ssh/sshd_config", box.read("/etc/ssh/sshd_config"))  # for the reset
        box.write("/etc/ssh/sshd_config.d/test.conf", "UsePAM no\n")
        finding = the_fault(box)
        assert finding.name == "sshd"
        is_fixed(box, finding)

    def test_another_pam_service(self, box: Instance) -> None:
        """PAMServiceName, since OpenSSH 9.8."""
        script = "#!/bin/sh\necho UsePAM yes; echo PAMServiceName bastion\n"
        box.write("/usr/local/bin/sshd", script, 0o755)
        box.write("/etc/pam.d/bastion", PERMIT)
        box.write(PAM, PERMIT)
        with mounted(box, "--bind", "/usr/local/bin/sshd", on="/usr/sbin/sshd"):
            finding = the_fault(box)
            assert finding.name == "pam bastion"
            is_fixed(box, finding)

    def test_nobody_has_connected_since_the_boot(self, box: Instance) -> None:
        """With sshd.socket: then there is no /run/sshd, without which `sshd -T` says nothing."""
        shutil.rmtree(box.path("/run/sshd"))
        found = faults(check(box))
        if found:  # OpenSSH before 9.3
            assert [(one.name, one.severity) for one in found.values()] == [("sshd", "warning")]
            is_fixed(box, *found.values())
            assert box.path("/run/sshd").stat().st_mode & 0o7777 == 0o755
        box.path("/run/sshd").mkdir(0o755, exist_ok=True)

    def test_a_host_without_sshd(self, box: Instance) -> None:
        box.write("/etc/pam.d/login", f"{box.read('/etc/pam.d/login')}{LINE}\n")
        box.write(PAM, "")
        box.path(PAM).unlink()
        with mounted(box, "-t", "tmpfs", "tmpfs", on="/usr/sbin"):
            found = check(box)
        assert faults(found) == {}
        names = {finding.name for finding in found}
        assert "pam login" in names
        assert "pam sshd" not in names

    def test_a_probe_that_fails_in_an_unforeseen_way_says_so(self, box: Instance) -> None:
        with mounted(box, "--bind", "/dev/null", on="/usr/sbin/sshd"):
            finding = the_fault(box)
        assert finding.name == "sshd"
        assert finding.message.startswith("can't be checked: ")


def test_selinux_is_enforcing_and_the_labels_are_wrong(box: Instance) -> None:
    """The machine's kernel has none: what it would show is mounted in its place."""
    box.path(SPOOL).mkdir(0o700)
    with mounted(box, "-t", "tmpfs", "tmpfs", on="/sys/fs"):
        box.write("/sys/fs/selinux/enforce", "1")
        box.write("/sys/fs/selinux/context", "")  # which takes any type
        finding = the_fault(box)
    assert (finding.name, finding.severity) == ("selinux", "error")
    assert SPOOL in finding.message
    assert command(finding.advice).startswith("restorecon -Ri /var/spool/tattle")


def test_selinux_keeps_a_confined_users_hook_from_reporting(box: Instance) -> None:
    """What semanage login -a -s staff_u alice writes, and RHEL's order: pam_selinux, then ours."""
    seusers = "root:unconfined_u:s0-s0:c0.c1023\n__default__:unconfined_u:s0-s0:c0.c1023\n"
    box.write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=targeted\n")
    box.write("/etc/selinux/targeted/seusers", seusers)
    with mounted(box, "-t", "tmpfs", "tmpfs", on="/sys/fs"):
        box.write("/sys/fs/selinux/enforce", "1")
        box.write("/sys/fs/selinux/context", "")
        assert "pam sshd" not in faults(check(box))
        box.write("/etc/selinux/targeted/seusers", f"{seusers}alice:staff_u:s0-s0:c0.c1023\n")
        finding = faults(check(box))["pam sshd"]
        assert (finding.severity, finding.message[-10:]) == ("error", "ned: alice")
        follow(box, finding)
        assert "pam sshd" not in faults(check(box))
    lines = box.read(PAM).splitlines(keepends=True)
    (selinux,) = [n for n, line in enumerate(lines) if "pam_selinux.so open" in line]
    assert LINES in "".join(lines[:selinux])
    assert TATTLE not in "".join(lines[selinux:])
    assert box.ssh("ubuntu", "true").returncode == 0
    assert len(box.eventbridge.wait_for(2)) == 2


def belongs_to_alice(box: Instance) -> None:
    os.chown(box.path(SPOOL), 6002, 6002)


def is_a_link(box: Instance) -> None:
    spool = box.path("/var/spool") / "tattle"
    spool.rename(spool.with_name("elsewhere"))
    spool.symlink_to("/home/ubuntu")


class TestSpool:
    @pytest.fixture(autouse=True)
    def _spool(self, box: Instance) -> None:
        box.path(SPOOL).mkdir(0o700)

    @pytest.mark.parametrize(
        "spoil",
        [
            belongs_to_alice,
            is_a_link,
            lambda box: box.path(SPOOL).chmod(0o755),
            lambda box: box.path("/var/spool").chmod(0o777),
        ],
        ids=["owner", "link", "mode", "folder"],
    )
    def test_a_folder_that_is_not_roots_alone(
        self, spoil: Callable[[Instance], None], box: Instance
    ) -> None:
        spoil(box)
        finding = the_fault(box)
        assert finding.name == "spool"
        assert "/var/spool" in finding.message
        is_fixed(box, finding)
        assert box.path("/home/ubuntu").stat().st_uid == 6001

    def test_what_an_image_brought_of_another_machine(self, box: Instance) -> None:
        """And what kept it back there is no longer what keeps anything back."""
        (name,) = box.accept("builder")
        record = box.path(SPOOL) / name
        builders = record.read_bytes().replace(b"INSTANCE=i-abc123abc123", b"INSTANCE=i-0b0b0b")
        record.write_bytes(builders)
        error = {"time": time.time(), "message": "no role", "advice": "", "boot": "b"}
        (box.path(SPOOL) / ".fault").write_text(json.dumps(error))
        assert "delivery" not in faults(check(box))
        assert box.run([TATTLE, "flush"]).returncode == 0
        assert box.eventbridge.entries() == []
        finding = the_fault(box)
        assert (finding.name, finding.severity) == ("elsewhere", "warning")
        is_fixed(box, finding)

    def test_who_holds_the_lock_and_shows_no_heartbeat(self, box: Instance) -> None:
        (name,) = box.accept("waits")
        minutes_ago = time.time() - 600
        old = f"{int(minutes_ago * 1e9):020d}-1"
        (box.path(SPOOL) / name).rename(box.path(SPOOL) / old)
        os.utime(box.path(SPOOL) / ".deliverer", (minutes_ago, minutes_ago))
        with box.popen(["flock", "--no-fork", SPOOL, "sleep", "600"]) as other:
            try:
                eventually(lambda: "delivery" in faults(check(box)))
                finding = faults(check(box))["delivery"]
                assert f"holds the lock of {SPOOL}" in finding.message
            finally:
                box.kill(*box.processes("sleep 600"))
                other.wait()

    def test_what_was_accepted_before_the_clock_was_set_back(self, box: Instance) -> None:
        (name,) = box.accept("later")
        later = f"{int((time.time() + 3600) * 1e9):020d}-1"
        (box.path(SPOOL) / name).rename(box.path(SPOOL) / later)
        (finding,) = [one for one in check(box) if one.name == "spool"]
        assert "the oldest since before the clock was set back" in finding.message

    def test_what_stands_in_the_place_of_its_own_files(self, box: Instance) -> None:
        """By root's mistake: nothing can be delivered."""
        box.run(["install", "-d", "-m", "700", SPOOL], check=True)
        box.run(["ln", "-s", "/nowhere", f"{SPOOL}/.standby"], check=True)
        box.run(["mkdir", f"{SPOOL}/.wake"], check=True)
        wrong = [finding for finding in check(box) if finding.is_fault]
        assert [(finding.id, finding.message) for finding in wrong] == [
            ("spool", f"{SPOOL}/{name} is not a file") for name in (".standby", ".wake")
        ]
        for finding in wrong:
            box.run(["/bin/sh", "-c", finding.advice], check=True)
        assert faults(check(box)) == {}

    def test_a_disk_that_is_read_only(self, box: Instance) -> None:
        box.run(["mount", "-o", "remount,ro", "/var/spool"], check=True)
        try:
            finding = the_fault(box)
            assert finding.name == "disk"
            is_fixed(box, finding)
        finally:
            box.run(["mount", "-o", "remount,rw", "/var/spool"], check=True)

    @pytest.mark.parametrize(
        ("limit", "fill"),
        [
            ("size=16k", "dd if=/dev/zero of=/var/spool/other"),
            ("nr_inodes=2", "touch /var/spool/other"),
        ],
    )
    def test_a_disk_that_is_full(self, limit: str, fill: str, box: Instance) -> None:
        with mounted(box, "-t", "tmpfs", "-o", f"mode=755,{limit}", "tmpfs", on="/var/spool"):
            box.run(fill.split())
            finding = the_fault(box)
            assert finding.name == "disk"
            assert "room" in finding.advice
            box.run(["rm", "/var/spool/other"])
            assert faults(check(box)) == {}

    def test_what_waits_what_keeps_it_back_and_what_was_rejected(self, box: Instance) -> None:
        box.eventbridge.set(rejections=[Rejection("ubuntu", "MalformedDetail", "no", times=1)])
        box.hook()
        box.syslog.wait_for("rejected: ")
        box.kill_deliverers()
        (box.path(SPOOL) / "rub bish").write_text("")
        check(box)
        assert (box.path(SPOOL) / "rub bish").exists()  # to move it is the deliverer's
        box.run([TATTLE, "flush"], check=True)
        box.eventbridge.set(fault="access-denied")
        box.hook(user="alice")
        eventually((box.path(SPOOL) / ".fault").exists)
        box.kill_deliverers()
        (name,) = set(box.spool()) - {"rejected"}
        old = f"{time.time_ns() - 3600 * 10**9:020d}-{name.partition('-')[2]}"
        (box.path(SPOOL) / name).rename(box.path(SPOOL) / old)
        waits, keeps, events, rubbish = found = [one for one in check(box) if one.is_fault]
        assert [one.id for one in found] == ["spool", "delivery", "rejected", "rejected"]
        assert [one.severity for one in found] == ["error", "error", "error", "warning"]
        assert re.search(r"1 waiting in .*, the oldest for 36\d\d s", waits.message)
        assert "AccessDeniedException" in keeps.message
        assert "iam-policy" in keeps.advice
        assert "rm" not in command(events.advice).split()  # an accepted event is not thrown away
        box.eventbridge.set(fault=None)
        is_fixed(box, waits, events, rubbish)
        users = [entry.detail["username"] for entry in box.eventbridge.entries()]
        assert sorted(users) == ["alice", "ubuntu"]

    def test_what_waits_where_a_reboot_empties_it(self, box: Instance) -> None:
        box.eventbridge.set(fault="refuse")
        box.run(["mount", "-o", "remount,ro", "/var/spool"], check=True)
        try:
            box.hook()
            box.kill_deliverers()
        finally:
            box.run(["mount", "-o", "remount,rw", "/var/spool"], check=True)
        box.eventbridge.set(fault=None)
        found = faults(check(box))
        assert "1 waiting in /run/tattle-spool" in found["spool"].message
        is_fixed(box, found["spool"])


def test_an_event_is_sent_to_each_configured_bus_and_its_id_is_said(box: Instance) -> None:
    host = "events.eu-west-1.amazonaws.com"
    box.resolve(host)
    conf = "[tattle]\nregion = eu-west-1\nsource = org.example\n[service su]\nevent-bus = logins\n"
    box.write(CONF, conf)
    found = check(box, "--send")
    assert list(faults(found)) == ["pam su"]  # which is configured, and has no line
    assert {call.host for call in box.eventbridge.calls()} == {host}
    entries = box.eventbridge.entries()
    assert [entry.raw.get("EventBusName") for entry in entries] == [None, "logins"]
    sent = [finding for finding in found if finding.id == "send"]
    for entry, finding in zip(entries, sent):
        assert entry.raw["DetailType"] == "tattle check"
        assert (entry.raw["Source"], entry.raw["Resources"]) == ("org.example", [ARN])
        assert json.loads(entry.raw["Detail"])["hostname"] == HOSTNAME
        assert abs(entry.raw["Time"] - time.time()) < 60
        assert finding.severity == "ok"
        assert entry.event_id in finding.message


@pytest.mark.parametrize("fault", ["clock", "name"])
def test_a_fault_is_not_taken_for_others(fault: str, box: Instance) -> None:
    if fault == "clock":
        box.eventbridge.set(clock_skew=600)
    else:
        box.write("/etc/hosts", "127.0.0.1 localhost\n")
    finding = the_fault(box)
    assert finding.name == fault
    if fault == "name":
        assert f"{EVENTBRIDGE_HOST} does not resolve" in finding.message
        assert "resolv.conf" in finding.advice


class TestOutput:
    def test_a_terminal_has_colours_and_signs_or_words(self, box: Instance) -> None:
        box.imds.set(role=None)
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"])
        assert done.returncode == 1
        for colour in ("\033[32m✓", "\033[31m✗"):
            assert colour in done.stdout
        done = box.run([TATTLE, "check"], env={"LC_ALL": "C", "LANG": "C"})
        assert done.returncode == 1
        assert done.stdout.isascii()

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [("check", 0), ("check --json", 0), ("recipe", os.EX_IOERR), ("--help", os.EX_IOERR)],
    )
    def test_a_reader_that_has_left(self, arguments: str, status: int, box: Instance) -> None:
        """What `check` found it says by its status, too."""
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as stdout:
            script = f"{TATTLE} {arguments} 2>/tmp/errors"
            with box.popen(["/bin/sh", "-c", script], stdout=stdout) as process:
                assert process.wait(60) == status
        assert box.read("/tmp/errors") == ""

    @pytest.mark.parametrize(
        "arguments", ["check >&- 2>&-", "check --json >&-", "--version >&-", "--help >&- 2>&-"]
    )
    def test_where_nobody_reads_it_ends_as_if_somebody_did(
        self, arguments: str, box: Instance
    ) -> None:
        done = box.run(["/bin/sh", "-c", f"{TATTLE} {arguments}"])
        assert (done.returncode, done.stderr) == (0, "")

    def test_who_interrupts_it_at_any_moment_sees_nothing_of_its_insides(
        self, box: Instance
    ) -> None:
        """Python's own start may be what is interrupted: before our first line it says so."""
        interrupted = f"timeout --signal=INT 0.$n {TATTLE} check >/dev/null"
        moments = "01 02 03 04 06 08 10 15 20 30 40 60 80"
        script = f"for n in {moments}; do {interrupted} || [ $? = 124 ] || exit 1; done"
        done = box.run(["/bin/bash", "-c", script])
        assert done.returncode == 0
        assert "defect" not in done.stderr
        assert not re.search(r'File "(?!<)', done.stderr), done.stderr


def test_other_users_are_told_that_root_sees_more_and_nothing_that_is_untrue(
    box: Instance,
) -> None:
    box.path(SPOOL).mkdir(0o700)
    box.write("/tmp/ca.pem", box.ca.pem)
    found = faults(check(box, user="ubuntu", env={"AWS_CA_BUNDLE": "/tmp/ca.pem"}))
    assert list(found) == ["user"]
    assert found["user"].advice == f"sudo {TATTLE} check"


class TestAHostThatIsHalfBroken:
    def test_every_probe_stands_alone_and_it_is_over_within_seconds(self, box: Instance) -> None:
        box.imds.set(fault="hang")
        box.eventbridge.set(fault="hang")
        box.path(SPOOL).mkdir(0o755)
        box.write("/etc/ssh/sshd_config.d/broken.conf", "Rubbish yes\n")
        box.write(CONF, "whatever\n")
        started = time.monotonic()
        found = check(box, "--send")
        assert time.monotonic() - started < LONGEST_SECONDS
        severities = {finding.name: finding.severity for finding in found}
        assert [name for name, severity in severities.items() if severity == "error"] == [
            "sshd",
            "spool",
            "configuration",
            "identity",
            "role",
            "send",
        ]
        assert {severities[name] for name in ("name", "endpoint", "clock")} == {"skipped"}

    def test_a_name_server_that_never_answers(
        self, box: Instance, artifact: Path, tmp_path: Path
    ) -> None:
        quick = tmp_path / "tattle"
        changed(artifact, quick, r"^PROBE_SECONDS = 10\.0", "PROBE_SECONDS = 3.0")
        box.install(quick)
        box.write("/etc/hosts", "127.0.0.1 localhost\n")
        box.write("/etc/resolv.conf", "nameserver 1.2.3.4\n")
        with bind("1.2.3.4", 53, box.network, socket.SOCK_DGRAM):
            finding = the_fault(box)
        assert (finding.name, finding.message) == ("name", "no result within 3 s")
        assert "name server" in finding.advice
