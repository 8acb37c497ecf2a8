"""`tattle check`: each fault that it knows is provoked, and what it says to do fixes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from standins.ca import EXPIRED, UNTRUSTED, WRONG_HOST
from standins.eventbridge import Rejection
from standins.imds import ROLE_NOT_ASSUMABLE, TOKEN_PATH, role_credentials
from standins.instance import EVENTBRIDGE_HOST, HOSTNAME, SPOOL, SYSTEM_PYTHON, TATTLE, Instance
from support import ROOT, eventually

pytestmark = pytest.mark.root

CONF = "/etc/tattle.conf"
AWS_CONFIG = "/root/.aws/config"
PAM = "/etc/pam.d/sshd"
EXAMPLE = ROOT / "tests" / "check-example.json"
LINE = f"session optional pam_exec.so {TATTLE}"
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"
COMMANDS = (  # what an advice may begin with
    *("authselect", "chmod", "chown", "cp", "echo", "install", "mount", "printf", "restorecon"),
    *("rm", "sed", "sh", "sudo", "tattle"),
)
LONGEST_SECONDS = 12.0  # a check, however broken the host is
ON_A_TERMINAL = (
    SYSTEM_PYTHON,
    "-IS",
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
)


class Finding(NamedTuple):
    """As --json has it."""

    id: str
    severity: str
    message: str
    advice: str
    service: str

    @property
    def name(self) -> str:
        """As it is printed for a person."""
        return f"{self.id} {self.service}".rstrip()


@pytest.fixture
def box(instance: Instance) -> Instance:
    """The instance with nothing wrong."""
    instance.configure_pam(user_readenv=False)
    return instance


def check(box: Instance, *arguments: str, **options: Any) -> list[Finding]:
    """What a check finds, of which its exit status must tell."""
    done = box.run([TATTLE, "check", "--json", *arguments], **options)
    assert done.stderr == ""
    found = read(done.stdout)
    severities = {finding.severity for finding in found}
    status = 1 if "error" in severities else 2 if "warning" in severities else 0
    assert done.returncode == status
    return found


def read(text: str) -> list[Finding]:
    """The findings in the JSON."""
    document = json.loads(text)
    assert document.keys() == {"schema", "version", "findings"}
    assert document["schema"] == 1
    return [Finding(**finding) for finding in document["findings"]]


def faults(found: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in found if one.severity in ("warning", "error")}


def command(advice: str) -> str:
    """The command in an advice: its end, from the first word that can be run."""
    found = re.search(rf"(^|: )(({'|'.join(COMMANDS)}) .*)", advice)
    assert found, advice
    return re.split(r" && .*systemctl", found[2])[0]


def follow(box: Instance, advice: str) -> None:
    """Do what an advice says, by the command in it."""
    box.run(["/bin/sh", "-ec", command(advice)], check=True)


def one_event(box: Instance) -> None:
    """Have one event delivered and forgotten, so that there is a spool, with nothing in it."""
    box.hook()
    box.eventbridge.wait_for(1)
    while box.spool():
        time.sleep(0.01)
    box.kill_deliverers()


IDS = [
    "versions",
    "user",
    "pam",
    "environment",
    "sshd",
    "selinux",
    "disk",
    "spool",
    "delivery",
    "rejected",
    "configuration",
    "identity",
    "role",
    "name",
    "endpoint",
    "clock",
    "send",
]


def test_where_all_is_well_there_is_a_line_for_each_thing_and_the_status_is_0(
    box: Instance,
) -> None:
    done = box.run([TATTLE, "check"])
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert last == "0 errors, 0 warnings, 16 ok, 1 skipped"
    assert lines.pop() == "- send: only with --send"
    assert all(line.startswith("✓ ") for line in lines), done.stdout
    found = {line[2:].partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert [name.partition(" ")[0] for name in found] == IDS[:-1]
    version = r"tattle \d\S+, build [0-9a-f]{12}, Python 3\.\S+, botocore 1\.42\.\d+"
    assert re.fullmatch(version, found["versions"])
    assert TATTLE in found["pam sshd"]
    assert PAM in found["pam sshd"]
    assert found["identity"] == ARN
    assert EVENTBRIDGE_HOST in found["endpoint"]
    assert box.eventbridge.entries() == []
    assert box.log() == []


def test_json_carries_the_same(box: Instance) -> None:
    box.configure_pam(user_readenv=True)
    box.write("/home/ubuntu/ca.pem", box.ca.pem)
    box.imds.set(role=None)
    for user in ("root", "ubuntu"):
        options: dict[str, Any] = {"user": user, "env": {"AWS_CA_BUNDLE": "/home/ubuntu/ca.pem"}}
        found = check(box, **options)
        expected = []
        for finding in found:
            mark = {"ok": "✓", "warning": "!", "error": "✗", "skipped": "-"}[finding.severity]
            expected.append(f"{mark} {finding.name}: {finding.message}")
            expected += [f"    → {finding.advice}"] if finding.advice else []
        *lines, last = box.run([TATTLE, "check"], **options).stdout.splitlines()
        assert [undated(line) for line in lines] == [undated(line) for line in expected]
        count = Counter(finding.severity for finding in found)
        assert last.startswith(f"{count['error']} errors, {count['warning']} warning")


def test_the_documented_example_is_what_is_printed(box: Instance) -> None:
    """check-example.json: an instance without a role, on which `su -` is not reported."""
    box.write("/etc/pam.d/su", SU.format(TATTLE))
    box.write("/etc/pam.d/su-l", VARIANTS["su"][1])
    box.imds.set(role=None)
    done = box.run([TATTLE, "check", "--json"])
    assert (done.returncode, done.stderr) == (1, "")
    assert without_numbers(done.stdout) == without_numbers(EXAMPLE.read_text())


def without_numbers(text: str) -> str:
    return re.sub(r"build \w+|[0-9]+(\.[0-9]+)*", "0", text)


def test_every_id_is_there_whatever_could_be_looked_at(box: Instance) -> None:
    assert [finding.id for finding in check(box)] == IDS
    assert [finding.id for finding in check(box, "--send")] == IDS
    box.imds.set(fault="refuse")
    assert [finding.id for finding in check(box)] == IDS
    assert {finding.id for finding in check(box, user="ubuntu")} == {*IDS}


def lines(box: Instance) -> list[str]:
    """Those of sshd's PAM file."""
    return box.read(PAM).splitlines(keepends=True)


def undated(line: str) -> str:
    return re.sub(r"-?\d+(\.\d+)? (s|min|h)\b", "", line)


def test_every_fault_says_what_to_do(box: Instance) -> None:
    box.configure_pam(user_readenv=True)
    box.imds.set(fault="refuse")
    box.eventbridge.set(fault="refuse")
    box.write(CONF, "[tattle]\nsauce = x\n")
    for finding in check(box, "--send"):
        assert finding.severity in ("ok", "skipped") or finding.advice
        for text in (finding.message, finding.advice):
            assert "Traceback" not in text
            assert "\n" not in text


class TestPam:
    """The line in each service's stack."""

    def one_fault(self, box: Instance, name: str = "pam sshd") -> Finding:
        found = faults(check(box))
        assert list(found) == [name]
        return found[name]

    def fixed(self, box: Instance, finding: Finding) -> None:
        """Following the advice makes all well."""
        follow(box, finding.advice)
        assert faults(check(box)) == {}

    def test_no_line(self, box: Instance) -> None:
        box.write(PAM, box.read(PAM).replace(TATTLE, "/bin/true"))
        self.fixed(box, self.one_fault(box))
        assert box.ssh("ubuntu", "true").returncode == 0
        assert len(box.eventbridge.wait_for(2)) == 2

    def test_no_line_for_a_service_that_the_configuration_names(self, box: Instance) -> None:
        box.write("/etc/pam.d/su", box.read("/etc/pam.d/su"))
        box.write(CONF, "[service su]\ndetail-type = su\n")
        self.fixed(box, self.one_fault(box, "pam su"))

    def test_a_service_without_a_file(self, box: Instance) -> None:
        box.write(CONF, "[service cockpit]\ndetail-type = cockpit\n")
        finding = self.one_fault(box, "pam cockpit")
        assert "no /etc/pam.d/cockpit" in finding.message
        assert CONF in finding.advice

    def test_another_services_line_is_found_without_being_configured(self, box: Instance) -> None:
        box.write("/etc/pam.d/login", f"{box.read('/etc/pam.d/login')}{LINE}-gone\n")
        assert "/etc/pam.d/login" in self.one_fault(box, "pam login").message

    @pytest.mark.parametrize("kind", ["auth", "account"])
    def test_a_line_that_is_not_for_sessions(self, kind: str, box: Instance) -> None:
        box.write(
            PAM,
            box.read(PAM).replace(
                f"session    optional     pam_exec.so {TATTLE}", LINE.replace("session", kind)
            ),
        )
        self.fixed(box, self.one_fault(box))

    @pytest.mark.parametrize("half", ["open_session", "close_session"])
    def test_a_line_that_is_for_half_of_the_events(self, half: str, box: Instance) -> None:
        line = f"session optional pam_exec.so type={half} {TATTLE}\n"
        stock = [other for other in lines(box) if TATTLE not in other]
        box.write(PAM, "".join([*stock, line]))
        finding = self.one_fault(box)
        assert half in finding.message
        self.fixed(box, finding)

    def test_a_path_that_does_not_exist(self, box: Instance) -> None:
        box.write(PAM, box.read(PAM).replace(TATTLE, "/usr/local/bin/tattle-2"))
        finding = self.one_fault(box)
        assert "/usr/local/bin/tattle-2" in finding.message
        box.write("/usr/local/bin/tattle-2", "")  # so that a reset removes it
        box.path("/usr/local/bin/tattle-2").unlink()
        self.fixed(box, finding)

    def test_another_file_than_this(self, box: Instance) -> None:
        box.write("/usr/local/bin/tattle-2", "#!/bin/sh\n", 0o755)
        box.write(PAM, box.read(PAM).replace(TATTLE, "/usr/local/bin/tattle-2"))
        finding = self.one_fault(box)
        assert "/usr/local/bin/tattle-2" in finding.message
        self.fixed(box, finding)

    def test_a_link_to_this_one_is_this_one(self, box: Instance) -> None:
        box.write("/usr/local/bin/tattle-2", "")
        link = box.path("/usr/local/bin") / "tattle-2"
        link.unlink()
        os.symlink(TATTLE, link)
        box.write(PAM, box.read(PAM).replace(TATTLE, "/usr/local/bin/tattle-2"))
        assert faults(check(box)) == {}
        link.unlink()

    @pytest.mark.parametrize("mode", [0o644, 0o775])
    def test_a_mode_that_is_wrong(self, mode: int, box: Instance) -> None:
        with restored(box, TATTLE):
            box.path(TATTLE).chmod(mode)
            command = [SYSTEM_PYTHON, "-IS", TATTLE, "check", "--json"]
            found = read(box.run(command).stdout)
            assert list(faults(found)) == ["pam sshd"]
            self.fixed(box, faults(found)["pam sshd"])

    def test_another_owner(self, box: Instance) -> None:
        with restored(box, TATTLE):
            os.chown(box.path(TATTLE), 6002, 0)
            self.fixed(box, self.one_fault(box))

    def test_a_folder_above_it_that_others_may_write(self, box: Instance) -> None:
        with restored(box, "/usr/local/bin"):
            box.path("/usr/local/bin").chmod(0o777)
            finding = self.one_fault(box)
            assert "/usr/local/bin" in finding.message
            self.fixed(box, finding)

    @pytest.mark.parametrize(
        ("sshd", "included"),
        [
            (f"{LINE}\n", ""),
            (f"-{LINE}\n", ""),
            (f"  \t{LINE}\n", ""),
            (f"session [success=ok default=ignore] pam_exec.so seteuid {TATTLE} --wait=2\n", ""),
            (f"session optional pam_exec.so [{TATTLE}]\n", ""),
            (f"session optional \\\n  pam_exec.so \\\n  quiet {TATTLE} # ours\n", ""),
            (f"session optional {{security}}/pam_exec.so {TATTLE}\n", ""),
            ("session include ours\n", f"SESSION Optional pam_exec.so {TATTLE}\n"),
            ("session substack ours\n", f"auth required pam_deny.so\n{LINE}\n"),
            ("session INCLUDE /etc/pam.d/ours\n", f"{LINE}\n"),
            ("@include ours\n", f"# nothing\n\n{LINE}\n"),
        ],
    )
    def test_the_line_is_found_however_it_is_written(
        self, sshd: str, included: str, box: Instance
    ) -> None:
        (security,) = {path.parent for path in box.path("/usr/lib").glob("*/security/pam_exec.so")}
        sshd = sshd.replace("{security}", f"/usr/lib/{security.parent.name}/security")
        stock = "".join(line for line in lines(box) if TATTLE not in line)
        box.write(PAM, stock + sshd)
        if included:
            box.write("/etc/pam.d/ours", included)
        found = check(box)
        assert faults(found) == {}
        (pam,) = (finding for finding in found if finding.name == "pam sshd")
        number = stock.count("\n") + 1
        where = f"/etc/pam.d/ours:{included.count(chr(10))}" if included else f"{PAM}:{number}"
        assert f"{where} " in pam.message
        assert box.ssh("ubuntu", "true").returncode == 0
        assert len(box.eventbridge.wait_for(2)) == 2  # PAM reads it so, too

    @pytest.mark.parametrize(
        "line",
        [
            f"# {LINE}\n",
            f"session optional pam_exec.so /bin/true # {TATTLE}\n",
            f"session optional pam_permit.so {TATTLE}\n",
            f"session include nowhere # {LINE}\n",
            "session include sshd\n",
        ],
    )
    def test_what_runs_nothing_is_no_line(self, line: str, box: Instance) -> None:
        box.write(PAM, line)
        assert list(faults(check(box))) == ["pam sshd"]

    def test_a_stack_that_runs_it_twice(self, box: Instance) -> None:
        stock = box.read(PAM)
        box.write(PAM, f"{stock}{LINE}\n")
        number = stock.count("\n")
        finding = self.one_fault(box)
        assert f"{PAM}:{number}, {PAM}:{number + 1}" in finding.message
        self.fixed(box, finding)
        assert box.read(PAM) == stock

    def test_a_line_that_another_jumps_over(self, box: Instance) -> None:
        stock = [line for line in lines(box) if TATTLE not in line]
        jump = "session [success=1 default=ignore] pam_succeed_if.so user = ubuntu\n"
        box.write(PAM, "".join([*stock, jump, f"{LINE}\n", "session required pam_permit.so\n"]))
        finding = self.one_fault(box)
        number = len(stock) + 1
        assert f"{PAM}:{number + 1} can be skipped by {PAM}:{number}" in finding.message
        assert box.ssh("ubuntu", "true").returncode == 0
        assert box.spool() == []
        assert box.eventbridge.entries() == []
        box.write(PAM, "".join([*stock, f"{LINE}\n", jump, "session required pam_permit.so\n"]))
        assert faults(check(box)) == {}

    def test_a_file_whose_last_line_has_no_end(self, box: Instance) -> None:
        stock = "".join(line for line in lines(box) if TATTLE not in line)
        box.write(PAM, stock + "session required pam_permit.so")
        self.fixed(box, self.one_fault(box))
        assert box.read(PAM).endswith(
            f"pam_permit.so\nsession    optional     pam_exec.so {TATTLE}\n"
        )

    @pytest.mark.parametrize("service", ["su", "sudo"])
    def test_a_caller_could_kill_a_hook_without_seteuid(self, service: str, box: Instance) -> None:
        file = f"/etc/pam.d/{service}"
        box.write(file, f"{box.read(file)}{LINE}\n")
        box.write("/etc/pam.d/sudo-i", "@include sudo\n")
        found = faults(check(box))
        assert all("has no seteuid" in finding.message for finding in found.values())
        assert f"pam {service}" in found
        self.fixed(box, found[f"pam {service}"])
        assert box.read(file).endswith(f"{LINE.replace('.so', '.so seteuid')}\n")


SU = "session required pam_limits.so\nsession optional pam_exec.so seteuid {}\n"
VARIANTS = {  # of util-linux 2.42 and of Debian's sudo: they include nothing of their base's
    "su": ("su-l", "auth sufficient pam_rootok.so\nsession optional pam_keyinit.so force revoke\n"),
    "su-l": ("su", "auth sufficient pam_rootok.so\nsession required pam_limits.so\n"),
    "sudo": ("sudo-i", "@include common-auth\nsession required pam_limits.so\n"),
    "sudo-i": ("sudo", "@include common-auth\nsession required pam_limits.so\n"),
}


class TestLoginVariants:
    @pytest.mark.parametrize("service", VARIANTS)
    def test_one_that_is_not_covered_though_the_other_is(self, service: str, box: Instance) -> None:
        other, stack = VARIANTS[service]
        box.write(f"/etc/pam.d/{service}", SU.format(TATTLE))
        box.write(f"/etc/pam.d/{other}", stack)
        found = faults(check(box))
        assert list(found) == [f"pam {other}"]
        assert found[f"pam {other}"].severity == "warning"
        assert box.run([TATTLE, "check"]).returncode == 2
        follow(box, found[f"pam {other}"].advice)
        assert faults(check(box)) == {}

    @pytest.mark.parametrize(("base", "variant"), [("su", "su-l"), ("sudo", "sudo-i")])
    def test_one_that_includes_its_base_is_covered(
        self, base: str, variant: str, box: Instance
    ) -> None:
        box.write(f"/etc/pam.d/{base}", SU.format(TATTLE))
        box.write(f"/etc/pam.d/{variant}", f"session include {base}\n")
        assert faults(check(box)) == {}


AUTHSELECT = """\
#!/bin/sh -e
# What authselect(8) does, as far as it concerns us
cd /etc/authselect
case $1 in
create-profile) mkdir -p custom/$2; cp password-auth custom/$2; [ "$3" = --base-on=sssd ] ;;
select) shift; printf '%s\\n' "$@" >authselect.conf; cp $1/password-auth . ;;
apply-changes) cp $(head -n 1 authselect.conf)/password-auth . ;;
esac
"""


class TestAuthselect:
    """It writes /etc/authselect/password-auth, to which /etc/pam.d/password-auth is a link."""

    HOLE = "auth required pam_env.so user_readenv=1\nsession required pam_permit.so\n"

    @pytest.fixture
    def link(self, box: Instance) -> Path:
        box.write("/usr/local/bin/authselect", AUTHSELECT, 0o755)
        box.write("/etc/authselect/authselect.conf", "# a comment\nsssd\nwith-sudo\n")
        box.write("/etc/authselect/password-auth", self.HOLE)
        link = box.path("/etc/pam.d") / "password-auth"
        link.symlink_to("/etc/authselect/password-auth")
        box.write(PAM, f"auth include password-auth\n{box.read(PAM)}")
        return link

    @pytest.mark.parametrize("profile", ["sssd", "custom/ours"])
    def test_its_files_are_changed_by_a_profile(
        self, profile: str, link: Path, box: Instance
    ) -> None:
        box.write("/etc/authselect/authselect.conf", f"{profile}\nwith-sudo\n")
        box.write("/etc/authselect/custom/ours/password-auth", self.HOLE)
        (finding,) = faults(check(box)).values()
        assert finding.name == "environment sshd"
        assert "authselect" in finding.advice
        follow(box, finding.advice)
        assert faults(check(box)) == {}
        assert link.is_symlink()
        own = box.read("/etc/authselect/authselect.conf")
        assert own in ("custom/tattle\nwith-sudo\n", "custom/ours\nwith-sudo\n")

    def test_another_link_stays_a_link(self, link: Path, box: Instance) -> None:
        box.path("/etc/authselect").rename(box.path("/etc") / "elsewhere")
        link.unlink()
        link.symlink_to("/etc/elsewhere/password-auth")
        (finding,) = faults(check(box)).values()
        follow(box, finding.advice)
        assert faults(check(box)) == {}
        assert link.is_symlink()


@contextmanager
def restored(box: Instance, inside: str) -> Iterator[None]:
    """Bring back a file's mode and owner, root's, in the end."""
    mode = box.path(inside).stat().st_mode & 0o7777
    try:
        yield
    finally:
        os.chown(box.path(inside), 0, 0)
        box.path(inside).chmod(mode)


class TestTheUsersEnvironment:
    NAME = "environment sshd"
    HOLE = "session required pam_env.so user_readenv=1\n"

    def test_stock_debian_lets_users_set_variables(self, box: Instance) -> None:
        box.configure_pam(user_readenv=True)
        found = faults(check(box))
        assert list(found) == [self.NAME]
        number = next(
            n for n, line in enumerate(box.read(PAM).splitlines(), 1) if "user_readenv" in line
        )
        assert f"{PAM}:{number}" in found[self.NAME].message
        follow(box, found[self.NAME].advice)
        assert faults(check(box)) == {}
        box.write("/home/ubuntu/.pam_environment", "X DEFAULT=y\n", owner="ubuntu")
        assert box.ssh("ubuntu", "echo $X").stdout == "\n"

    def test_in_an_included_file(self, box: Instance) -> None:
        box.write("/etc/pam.d/hole", f"# a comment\n{self.HOLE}")
        box.write(PAM, f"@include hole\n{box.read(PAM)}")
        found = faults(check(box))
        assert "/etc/pam.d/hole:2" in found[self.NAME].message
        follow(box, found[self.NAME].advice)
        assert faults(check(box)) == {}

    @pytest.mark.parametrize(
        "line",
        [
            f"  {HOLE}",
            HOLE.upper().replace("PAM_ENV.SO USER_READENV", "pam_env.so user_readenv"),
            "session required pam_env.so [user_readenv=1]\n",
            "session required pam_env.so user_readenv=2\tenvfile=/etc/default/locale\n",
            "auth optional pam_env.so user_readenv=1\n",
        ],
    )
    def test_however_it_is_written(self, line: str, box: Instance) -> None:
        box.write(PAM, f"{line}{box.read(PAM)}")
        found = faults(check(box))
        assert list(found) == [self.NAME]
        follow(box, found[self.NAME].advice)
        assert faults(check(box)) == {}

    def test_in_a_line_that_goes_on_in_the_next(self, box: Instance) -> None:
        hole = "session required pam_env.so \\\n  user_readenv=1\n"
        box.write(PAM, f"{hole}{box.read(PAM)}")
        found = faults(check(box))
        assert list(found) == [self.NAME]
        assert f"{PAM}:1 " in found[self.NAME].message  # where the line begins

    @pytest.mark.parametrize(
        "line",
        [f"# {HOLE}", "session required pam_env.so # user_readenv=1\n", HOLE.replace("=1", "=0")],
    )
    def test_what_is_no_hole(self, line: str, box: Instance) -> None:
        box.write(PAM, f"{line}{box.read(PAM)}")
        assert faults(check(box)) == {}


@contextmanager
def sshd(box: Instance, script: str) -> Iterator[None]:
    """Have a script in the place of sshd's program."""
    box.write("/usr/local/bin/sshd", f"#!/bin/sh\n{script}\n", 0o755)
    box.run(["mount", "--bind", "/usr/local/bin/sshd", "/usr/sbin/sshd"], check=True)
    try:
        yield
    finally:
        box.run(["umount", "/usr/sbin/sshd"], check=True)


class TestSshd:
    def test_pam_that_is_off(self, box: Instance) -> None:
        box.write("/etc/ssh/sshd_config", f"{box.read('/etc/ssh/sshd_config')}\n")
        box.write("/etc/ssh/sshd_config.d/test.conf", "UsePAM no\n")
        found = faults(check(box))
        assert list(found) == ["sshd"]
        assert "UsePAM" in found["sshd"].message
        follow(box, found["sshd"].advice)
        assert faults(check(box)) == {}

    def test_a_configuration_that_is_broken(self, box: Instance) -> None:
        box.write("/etc/ssh/sshd_config.d/broken.conf", "Rubbish yes\n")
        found = faults(check(box))
        assert list(found) == ["sshd"]
        assert "broken.conf" in found["sshd"].message
        box.write("/etc/ssh/sshd_config.d/broken.conf", "")
        assert faults(check(box)) == {}

    def test_words_in_capitals(self, box: Instance) -> None:
        """As OpenSSH 10.6 prints them."""
        with sshd(box, "echo UsePAM yes; echo PAMServiceName sshd"):
            assert faults(check(box)) == {}
        with sshd(box, "echo UsePAM no"):
            assert list(faults(check(box))) == ["sshd"]

    def test_another_pam_service(self, box: Instance) -> None:
        """PAMServiceName, since OpenSSH 9.8."""
        box.write("/etc/pam.d/bastion", box.read(PAM))
        box.write(PAM, "session required pam_permit.so\n")
        for script in (
            "echo usepam yes; echo pamservicename bastion",
            "echo UsePAM yes; echo PAMServiceName bastion",
        ):
            with sshd(box, script):
                found = check(box)
                assert faults(found) == {}
                assert "pam bastion" in {finding.name for finding in found}
        box.path("/etc/pam.d/bastion").write_text("session required pam_permit.so\n")
        with sshd(box, script):
            (finding,) = faults(check(box)).values()
            follow(box, finding.advice)
            assert faults(check(box)) == {}

    def test_nobody_has_connected_since_the_boot(self, box: Instance) -> None:
        """With sshd.socket: then there is no /run/sshd, without which `sshd -T` says nothing."""
        shutil.rmtree(box.path("/run/sshd"))
        missing = "echo Missing privilege separation directory: /run/sshd >&2; exit 255"
        unknown = "echo unknown option -- G >&2; exit 1"
        with sshd(box, f'[ "$1" = -T ] || {{ {unknown}; }}; {missing}'):
            (finding,) = faults(check(box)).values()
            assert (finding.name, finding.severity) == ("sshd", "warning")
        with sshd(box, f'[ "$1" = -G ] || {{ {missing}; }}; echo usepam yes'):
            assert faults(check(box)) == {}  # OpenSSH 9.3 and later
        follow(box, finding.advice)
        assert faults(check(box)) == {}
        assert box.path("/run/sshd").stat().st_mode & 0o7777 == 0o755

    def test_a_host_without_sshd(self, box: Instance) -> None:
        box.write("/etc/pam.d/login", f"{box.read('/etc/pam.d/login')}{LINE}\n")
        box.write(PAM, "")
        box.path(PAM).unlink()
        box.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/sbin"], check=True)
        try:
            found = check(box)
        finally:
            box.run(["umount", "/usr/sbin"], check=True)
        assert faults(found) == {}
        names = {finding.name for finding in found}
        assert "pam login" in names
        assert "pam sshd" not in names


class TestSelinux:
    """The machine's kernel has none: what it would show is mounted in its place."""

    def test_it_is_enforcing_and_the_labels_are_wrong(self, box: Instance) -> None:
        one_event(box)
        box.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/fs"], check=True)
        try:
            box.write("/sys/fs/selinux/enforce", "1")
            box.write("/sys/fs/selinux/context", "")  # which takes any type
            (finding,) = faults(check(box)).values()
        finally:
            box.run(["umount", "/sys/fs"], check=True)
        assert (finding.name, finding.severity) == ("selinux", "error")
        assert SPOOL in finding.message
        assert command(finding.advice).startswith("restorecon -Ri /var/spool/tattle")


class TestSpool:
    @pytest.fixture(autouse=True)
    def _spool(self, box: Instance) -> None:
        one_event(box)
        assert faults(check(box)) == {}

    @pytest.mark.parametrize(("mode", "uid"), [(0o755, 0), (0o700, 6002)])
    def test_that_is_not_roots_alone(self, mode: int, uid: int, box: Instance) -> None:
        os.chown(box.path(SPOOL), uid, uid)
        box.path(SPOOL).chmod(mode)
        found = faults(check(box))
        assert list(found) == ["spool"]
        assert SPOOL in found["spool"].message
        follow(box, found["spool"].advice)
        assert faults(check(box)) == {}

    def test_that_is_a_link(self, box: Instance) -> None:
        spool = box.path("/var/spool") / "tattle"
        spool.rename(spool.with_name("elsewhere"))
        os.symlink("/home/ubuntu", spool)
        found = faults(check(box))
        assert list(found) == ["spool"]
        follow(box, found["spool"].advice)
        assert faults(check(box)) == {}
        assert box.path("/home/ubuntu").stat().st_uid == 6001

    def test_below_a_folder_that_others_may_write(self, box: Instance) -> None:
        with restored(box, "/var/spool"):
            box.path("/var/spool").chmod(0o777)
            found = faults(check(box))
            assert list(found) == ["spool"]
            follow(box, found["spool"].advice)
            assert faults(check(box)) == {}

    def test_on_a_disk_that_is_read_only(self, box: Instance) -> None:
        box.run(["mount", "-o", "remount,ro", "/var/spool"], check=True)
        try:
            found = faults(check(box))
            assert list(found) == ["disk"]
            follow(box, found["disk"].advice)
            assert faults(check(box)) == {}
        finally:
            box.run(["mount", "-o", "remount,rw", "/var/spool"], check=True)

    @pytest.mark.parametrize(
        ("limit", "fill"),
        [
            ("size=16k", "dd if=/dev/zero of=/var/spool/other"),
            ("nr_inodes=2", "touch /var/spool/other"),
        ],
    )
    def test_on_a_disk_that_is_full(self, limit: str, fill: str, box: Instance) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", f"mode=755,{limit}", "tmpfs", "/var/spool"]
        box.run(mount, check=True)
        try:
            assert faults(check(box)) == {}
            box.run(fill.split())
            found = faults(check(box))
            assert list(found) == ["disk"]
            assert "room" in found["disk"].advice
            box.run(["rm", "/var/spool/other"])
            assert faults(check(box)) == {}
        finally:
            box.run(["umount", "/var/spool"], check=True)

    def test_what_waits_for_long(self, box: Instance) -> None:
        box.eventbridge.set(fault="refuse")
        box.hook()
        box.kill_deliverers()
        box.eventbridge.set(fault=None)
        (name,) = box.spool()
        (spool,) = (f for f in check(box) if f.id == "spool")
        assert spool.severity == "ok"  # it may be on its way
        assert spool.message.startswith("1 waiting in")
        old = f"{time.time_ns() - 3600 * 10**9:020d}-{name.partition('-')[2]}"
        (box.path(SPOOL) / name).rename(box.path(SPOOL) / old)
        found = faults(check(box))
        assert list(found) == ["spool"]
        assert re.search(r"1 waiting in .*, the oldest for 36\d\d s", found["spool"].message)
        follow(box, found["spool"].advice)
        assert faults(check(box)) == {}

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
        follow(box, found["spool"].advice)
        assert faults(check(box)) == {}

    def test_what_keeps_events_back(self, box: Instance) -> None:
        box.eventbridge.set(fault="access-denied")
        box.hook()
        eventually((box.path(SPOOL) / ".fault").exists)
        box.kill_deliverers()
        found = faults(check(box))
        assert list(found) == ["delivery"]
        assert "AccessDeniedException" in found["delivery"].message
        assert "iam-policy" in found["delivery"].advice
        box.eventbridge.set(fault=None)
        box.run([TATTLE, "flush"], check=True)
        assert faults(check(box)) == {}

    def test_an_event_that_was_set_aside_is_not_lost(self, box: Instance) -> None:
        box.eventbridge.set(rejections=[Rejection("ubuntu", "MalformedDetail", "no", times=1)])
        box.eventbridge.clear()
        box.hook()
        box.syslog.wait_for("set aside")
        found = faults(check(box))
        assert list(found) == ["rejected"]
        assert "rm" not in command(found["rejected"].advice).split()
        follow(box, found["rejected"].advice)
        assert faults(check(box)) == {}
        assert len(box.eventbridge.entries()) == 1

    def test_what_was_set_aside_and_is_no_event(self, box: Instance) -> None:
        (box.path(SPOOL) / "rub bish").write_text("")
        box.run([TATTLE, "flush"])
        found = check(box)
        assert [one.severity for one in found if one.id == "rejected"] == ["warning"]
        follow(box, faults(found)["rejected"].advice)
        assert faults(check(box)) == {}


class TestConfiguration:
    def test_a_slip(self, box: Instance) -> None:
        box.write(CONF, "[tattle]\nsource = org.example\nsauce = x\n")
        found = faults(check(box))
        assert list(found) == ["configuration"]
        assert f"{CONF}, line 3" in found["configuration"].message
        box.write(CONF, "[tattle]\nsource = org.example\n")
        assert faults(check(box)) == {}

    def test_a_file_that_others_may_write(self, box: Instance) -> None:
        box.write(CONF, "[tattle]\n", 0o666)
        found = faults(check(box))
        assert list(found) == ["configuration"]
        follow(box, found["configuration"].advice)
        assert faults(check(box)) == {}

    def test_roots_aws_files(self, box: Instance) -> None:
        with restored(box, AWS_CONFIG):
            box.path(AWS_CONFIG).chmod(0o666)
            found = faults(check(box))
            assert found
            (advice,) = {f.advice for f in found.values() if "chmod" in f.advice}
            follow(box, advice)
            assert faults(check(box)) == {}

    def test_settings_are_what_is_checked(self, box: Instance) -> None:
        host = "events.eu-west-1.amazonaws.com"
        box.resolve(host)
        box.write(CONF, "[tattle]\nregion = eu-west-1\nsource = org.example\nevent-bus = logins\n")
        found = check(box, "--send")
        assert faults(found) == {}
        assert {call.host for call in box.eventbridge.calls()} == {host}
        (entry,) = box.eventbridge.entries()
        assert (entry.raw["Source"], entry.raw["EventBusName"]) == ("org.example", "logins")


Provoke = Callable[[Instance], Any]


class Case(NamedTuple):
    """A fault of the surroundings: how it comes, the finding and a word in it, what the advice
    must speak of, and how somebody who follows it fixes it."""

    provoke: Provoke
    finding: str
    found: str
    advice: str
    fix: Provoke
    arguments: tuple[str, ...] = ()


def imds(**changes: Any) -> Provoke:
    return lambda box: box.imds.set(**changes)


def eventbridge(**changes: Any) -> Provoke:
    return lambda box: box.eventbridge.set(**changes)


def conf(text: str) -> Provoke:
    return lambda box: box.write(CONF, text)


def both(*changes: Provoke) -> Provoke:
    return lambda box: [change(box) for change in changes]


SURROUNDINGS = {
    "IMDS is off": Case(
        imds(fault="refuse"), "identity", "can't be reached", "http-endpoint", imds(fault=None)
    ),
    "IMDS does not answer": Case(
        imds(fault="hang"), "identity", "does not answer", "hop-limit 2", imds(fault=None)
    ),
    "IMDS gives no tokens": Case(
        imds(fault=403, fault_path=TOKEN_PATH),
        "identity",
        "403",
        "IMDS|imds|http-endpoint",
        imds(fault=None),
    ),
    "it is no EC2 instance": Case(
        imds(fault=404, fault_path="/latest/dynamic"),
        "identity",
        "IMDS",
        "`resource`",
        conf("[tattle]\nresource = rack 7\nregion = us-east-1\n"),
    ),
    "no region": Case(
        conf("[tattle]\nresource = rack 7\n"),
        "endpoint",
        "no region",
        "tattle.conf|`region`",
        conf("[tattle]\nresource = rack 7\nregion = us-east-1\n"),
    ),
    "no role": Case(imds(role=None), "role", "404", "instance profile", imds(role="tattle")),
    "a role that EC2 may not assume": Case(
        imds(credentials=ROLE_NOT_ASSUMABLE),
        "role",
        "cannot assume",
        "trust",
        imds(credentials=None),
    ),
    "credentials that have ended": Case(
        imds(credentials=role_credentials(lifetime=-3600)),
        "role",
        "expired|ended|valid",
        "clock|instance profile",
        imds(credentials=None),
    ),
    "a name that does not resolve": Case(
        lambda box: box.write("/etc/hosts", "127.0.0.1 localhost\n"),
        "name",
        f"{EVENTBRIDGE_HOST} does not resolve",
        "resolv.conf",
        lambda box: box.resolve(EVENTBRIDGE_HOST),
    ),
    "an endpoint that refuses": Case(
        eventbridge(fault="refuse"),
        "endpoint",
        "connect",
        "security group|route|proxy",
        eventbridge(fault=None),
    ),
    "an endpoint that does not answer": Case(
        eventbridge(fault="hang"),
        "endpoint",
        "timeout|timed out",
        "security group|route|proxy",
        eventbridge(fault=None),
    ),
    "a proxy that is not there": Case(
        conf("[tattle]\nproxy = http://127.0.0.1:9\n"),
        "endpoint",
        "proxy",
        "`proxy`",
        conf("[tattle]\n"),
    ),
    "an authority that nobody named": Case(
        lambda box: box.write(AWS_CONFIG, "[default]\n", 0o600),
        "endpoint",
        "certificate",
        "`ca-bundle`",
        conf("[tattle]\nca-bundle = /root/test-ca.pem\n"),
    ),
    "somebody else's certificate": Case(
        eventbridge(certificate=UNTRUSTED),
        "endpoint",
        "certificate",
        "`ca-bundle`",
        eventbridge(certificate="good"),
    ),
    "a certificate that has ended": Case(
        eventbridge(certificate=EXPIRED),
        "endpoint",
        "expired",
        "clock",
        eventbridge(certificate="good"),
    ),
    "another host's certificate": Case(
        eventbridge(certificate=WRONG_HOST),
        "endpoint",
        "elsewhere.example",
        "endpoint-url|name",
        eventbridge(certificate="good"),
    ),
    "a clock that is behind": Case(
        eventbridge(clock_skew=600),
        "clock",
        "(600|599|601) s behind",
        "clock",
        eventbridge(clock_skew=0),
    ),
    "a clock that is ahead": Case(
        eventbridge(clock_skew=-600),
        "clock",
        "(600|599|601) s ahead",
        "clock",
        eventbridge(clock_skew=0),
    ),
    "a role that may not publish": Case(
        eventbridge(fault="access-denied"),
        "send",
        "AccessDenied",
        "tattle recipe iam-policy.json",
        eventbridge(fault=None),
        ("--send",),
    ),
    "an event bus that there is not": Case(
        both(
            conf("[tattle]\nevent-bus = gone\n"),
            eventbridge(
                rejections=[Rejection("", "ResourceNotFoundException", "gone does not exist.")]
            ),
        ),
        "send",
        "does not exist",
        "`event-bus`",
        both(conf("[tattle]\n"), eventbridge(rejections=())),
        ("--send",),
    ),
}


@pytest.mark.parametrize("case", SURROUNDINGS.values(), ids=list(SURROUNDINGS))
def test_a_fault_of_the_surroundings(case: Case, box: Instance) -> None:
    case.provoke(box)
    found = faults(check(box, *case.arguments))
    assert case.finding in found
    finding = found[case.finding]
    assert re.search(case.found, finding.message), finding
    assert re.search(case.advice, finding.advice), finding
    case.fix(box)
    assert faults(check(box, *case.arguments)) == {}


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("no role", "role"),
        ("a certificate that has ended", "endpoint"),
        ("a clock that is behind", "clock"),
        ("a name that does not resolve", "name"),
    ],
)
def test_one_fault_is_not_taken_for_others(name: str, finding: str, box: Instance) -> None:
    SURROUNDINGS[name].provoke(box)
    assert list(faults(check(box))) == [finding]


def test_imds_that_is_off_is_named_as_the_cause_wherever_it_is_one(box: Instance) -> None:
    box.imds.set(fault="refuse")
    found = faults(check(box))
    assert list(found) == ["identity", "role"]
    for finding in found.values():
        assert "IMDS at http://169.254.169.254/ can't be reached" in finding.message
        assert "--http-endpoint enabled" in finding.advice


class TestSend:
    def test_an_event_goes_out_and_its_id_is_said(self, box: Instance) -> None:
        found = {finding.id: finding for finding in check(box, "--send")}
        (entry,) = box.eventbridge.entries()
        assert entry.raw["DetailType"] == "tattle check"
        assert (entry.raw["Source"], entry.raw["Resources"]) == ("com.unbounce.tattle", [ARN])
        assert json.loads(entry.raw["Detail"])["hostname"] == HOSTNAME
        assert abs(entry.raw["Time"] - time.time()) < 60
        assert found["send"].severity == "ok"
        assert entry.event_id in found["send"].message


class TestOutput:
    GREEN, RED = "\033[32m", "\033[31m"

    def test_colour_is_for_a_terminal(self, box: Instance) -> None:
        box.imds.set(role=None)
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"])
        assert done.returncode == 1
        assert self.GREEN in done.stdout
        assert self.RED in done.stdout
        assert "\033" not in box.run([TATTLE, "check"]).stdout

    @pytest.mark.parametrize("variable", ["NO_COLOR=1", "NO_COLOR=0", "TERM=dumb"])
    def test_and_not_where_it_is_unwanted(self, variable: str, box: Instance) -> None:
        name, _, value = variable.partition("=")
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"], env={name: value})
        assert done.returncode == 0
        assert "\033" not in done.stdout

    def test_an_empty_no_color_changes_nothing(self, box: Instance) -> None:
        """As https://no-color.org has it."""
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"], env={"NO_COLOR": ""})
        assert self.GREEN in done.stdout

    def test_json_is_never_coloured(self, box: Instance) -> None:
        done = box.run([*ON_A_TERMINAL, TATTLE, "check", "--json"])
        assert json.loads(done.stdout)

    def test_a_terminal_without_the_signs_gets_words(self, box: Instance) -> None:
        box.imds.set(role=None)
        done = box.run([TATTLE, "check"], env={"LC_ALL": "C", "LANG": "C"})
        assert done.returncode == 1
        assert done.stdout.isascii()
        marks = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
        assert marks == {"ok", "ERROR", "-", "1"}

    def test_what_others_chose_cant_steer_the_terminal(self, box: Instance) -> None:
        box.write(CONF, "[tattle]\n\x1b]0;x\x07 = 1\n")
        done = box.run([TATTLE, "check"])
        assert done.returncode == 1
        assert "\x1b" not in done.stdout

    @pytest.mark.parametrize("to", ["| true", "| head -n 1", ">&-", ">&- 2>&-"])
    @pytest.mark.parametrize(
        "arguments", ["check", "check --json", "recipe", "--version", "--help"]
    )
    def test_a_reader_that_leaves_early_or_is_not_there(
        self, to: str, arguments: str, box: Instance
    ) -> None:
        done = box.run(["/bin/bash", "-c", f"{TATTLE} {arguments} {to}; exit ${{PIPESTATUS[0]}}"])
        assert done.stderr == ""
        assert done.returncode in (0, os.EX_IOERR)

    def test_who_interrupts_it_at_any_moment_sees_nothing_of_its_insides(
        self, box: Instance
    ) -> None:
        """Python's own start may be what is interrupted: before our first line it says so."""
        interrupted = f"timeout --signal=INT 0.0$n {TATTLE} check >/dev/null"
        script = f"for n in $(seq -w 1 2 99); do {interrupted} || [ $? = 124 ] || exit 1; done"
        done = box.run(["/bin/bash", "-c", script])
        assert done.returncode == 0
        assert "defect" not in done.stderr
        assert not re.search(r'File "(?!<)', done.stderr), done.stderr


class TestUsersOtherThanRoot:
    def test_are_told_that_root_sees_more_and_nothing_that_is_untrue(self, box: Instance) -> None:
        one_event(box)
        box.write("/tmp/ca.pem", box.ca.pem)
        environment = {"AWS_CA_BUNDLE": "/tmp/ca.pem"}
        found = faults(check(box, user="ubuntu", env=environment))
        assert list(found) == ["user"]
        assert re.fullmatch(r"sudo \S*tattle check", command(found["user"].advice))
        assert faults(check(box)) == {}


SILENT_SERVER = """
import socket, sys
name_server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
name_server.bind(("1.2.3.4", 53))
print("here", flush=True)
sys.stdin.read()
"""


class TestAHostThatIsHalfBroken:
    def test_every_probe_stands_alone_and_it_is_over_within_seconds(self, box: Instance) -> None:
        one_event(box)
        box.imds.set(fault="hang")
        box.eventbridge.set(fault="hang")
        box.path(SPOOL).chmod(0o755)
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

    def test_a_probe_that_fails_in_an_unforeseen_way_says_so(self, box: Instance) -> None:
        box.run(["mount", "--bind", "/dev/null", "/usr/sbin/sshd"], check=True)
        try:
            found = faults(check(box))
        finally:
            box.run(["umount", "/usr/sbin/sshd"], check=True)
        assert list(found) == ["sshd"]
        assert found["sshd"].message.startswith("can't be checked: ")

    def test_eventbridge_alone_hangs(self, box: Instance) -> None:
        box.eventbridge.set(fault="hang")
        started = time.monotonic()
        found = faults(check(box, "--send"))
        assert time.monotonic() - started < LONGEST_SECONDS
        assert list(found) == ["endpoint", "send"]

    def test_a_name_server_that_never_answers(self, box: Instance) -> None:
        pipe = subprocess.PIPE
        server = box.popen([SYSTEM_PYTHON, "-IS", "-c", SILENT_SERVER], stdin=pipe, stdout=pipe)
        assert server.stdout
        assert server.stdout.readline() == "here\n"
        box.write("/etc/hosts", "127.0.0.1 localhost\n")
        box.write("/etc/resolv.conf", "nameserver 1.2.3.4\n")
        started = time.monotonic()
        found = faults(check(box))
        assert time.monotonic() - started < LONGEST_SECONDS
        server.communicate()
        assert list(found) == ["name"]
        assert "name server" in found["name"].advice

    def test_probes_at_the_same_time_never_stand_in_each_others_way(self, box: Instance) -> None:
        for _ in range(8):
            assert faults(check(box)) == {}
