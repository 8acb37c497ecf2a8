"""`tattle check`: each fault that it knows is provoked, and what it says to do mends it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from tattle.pamd import UNSECURE

from standins.ca import EXPIRED, UNTRUSTED, WRONG_HOST
from standins.eventbridge import Rejection
from standins.imds import ROLE_NOT_ASSUMABLE, TOKEN_PATH, role_credentials
from standins.instance import EVENTBRIDGE_HOST, HOSTNAME, SPOOL, SYSTEM_PYTHON, TATTLE, Instance

pytestmark = pytest.mark.root

CONF = "/etc/tattle.conf"
AWS_CONFIG = "/root/.aws/config"
PAM = "/etc/pam.d/sshd"
LINE = f"session optional pam_exec.so {TATTLE}"
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"
LONGEST_SECONDS = 12.0  # a check, however broken the host is
ON_A_TERMINAL = (
    SYSTEM_PYTHON,
    "-IS",
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
)


class Finding(NamedTuple):
    check: str
    ok: bool
    found: str
    advice: str


@pytest.fixture
def box(instance: Instance) -> Instance:
    """The instance with nothing wrong."""
    instance.configure_pam(user_readenv=False)
    return instance


def check(box: Instance, *arguments: str, **options: Any) -> list[Finding]:
    """What a check finds, of which its exit status must tell."""
    done = box.run([TATTLE, "check", "--json", *arguments], **options)
    assert done.stderr == ""
    found = [Finding(**finding) for finding in json.loads(done.stdout)]
    assert done.returncode == (0 if all(finding.ok for finding in found) else 1)
    return found


def faults(found: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found if not finding.ok}


def command(advice: str) -> str:
    """The command in an advice: its end, from the first word that can be run."""
    said = re.search(
        r"(echo '|sed -i|chown |chmod |install -m|rm |mount |tattle flush|sudo ).*", advice
    )
    assert said, advice
    return re.split(r" && .*systemctl", said[0])[0]


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


def test_where_all_is_well_there_is_a_line_for_each_thing_and_the_status_is_0(
    box: Instance,
) -> None:
    done = box.run([TATTLE, "check"])
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert all(line.startswith("✓ ") for line in said), done.stdout
    told = {line[2:].partition(": ")[0]: line.partition(": ")[2] for line in said}
    assert list(told) == [
        "versions",
        "pam sshd",
        "user environment sshd",
        "sshd",
        "spool",
        "configuration",
        "identity",
        "role",
        "name",
        "endpoint",
        "clock",
    ]
    assert re.search(
        r"tattle \d.*, Python 3\..*, botocore 1\.42\..*, urllib3 2\.", told["versions"]
    )
    assert TATTLE in told["pam sshd"]
    assert PAM in told["pam sshd"]
    assert told["identity"] == ARN
    assert EVENTBRIDGE_HOST in told["endpoint"]
    assert box.eventbridge.entries() == []
    assert box.log() == []


def test_json_carries_the_same(box: Instance) -> None:
    box.configure_pam(user_readenv=True)
    box.imds.set(role=None)
    done = box.run([TATTLE, "check", "--json"])
    assert (done.returncode, done.stderr) == (1, "")
    expected = []
    for finding in (Finding(**one) for one in json.loads(done.stdout)):
        expected.append(f"{'✓' if finding.ok else '✗'} {finding.check}: {finding.found}")
        expected += [f"    → {finding.advice}"] if finding.advice else []
    said = box.run([TATTLE, "check"]).stdout.splitlines()
    assert [undated(line) for line in said] == [undated(line) for line in expected]
    assert len(faults(check(box))) >= 2


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
        assert finding.ok or finding.advice
        for text in (finding.found, finding.advice):
            assert "Traceback" not in text
            assert "\n" not in text


class TestPam:
    """The line in each service's stack."""

    def one_fault(self, box: Instance, name: str = "pam sshd") -> Finding:
        found = faults(check(box))
        assert list(found) == [name]
        return found[name]

    def mended(self, box: Instance, finding: Finding) -> None:
        """Following the advice makes all well."""
        follow(box, finding.advice)
        assert faults(check(box)) == {}

    def test_no_line(self, box: Instance) -> None:
        box.write(PAM, box.read(PAM).replace(TATTLE, "/bin/true"))
        self.mended(box, self.one_fault(box))
        assert box.ssh("ubuntu", "true").returncode == 0
        assert len(box.eventbridge.wait_for(2)) == 2

    def test_no_line_for_a_service_that_the_configuration_names(self, box: Instance) -> None:
        box.write("/etc/pam.d/su", box.read("/etc/pam.d/su"))
        box.write(CONF, "[service su]\ndetail-type = su\n")
        self.mended(box, self.one_fault(box, "pam su"))

    def test_a_service_without_a_file(self, box: Instance) -> None:
        box.write(CONF, "[service cockpit]\ndetail-type = cockpit\n")
        assert "cockpit" in self.one_fault(box, "pam cockpit").advice

    def test_another_services_line_is_found_without_being_configured(self, box: Instance) -> None:
        box.write("/etc/pam.d/login", f"{box.read('/etc/pam.d/login')}{LINE}-gone\n")
        assert "/etc/pam.d/login" in self.one_fault(box, "pam login").found

    @pytest.mark.parametrize("kind", ["auth", "account"])
    def test_a_line_that_is_not_for_sessions(self, kind: str, box: Instance) -> None:
        box.write(
            PAM,
            box.read(PAM).replace(
                f"session    optional     pam_exec.so {TATTLE}", LINE.replace("session", kind)
            ),
        )
        self.mended(box, self.one_fault(box))

    @pytest.mark.parametrize("half", ["open_session", "close_session"])
    def test_a_line_that_is_for_half_of_the_events(self, half: str, box: Instance) -> None:
        line = f"session optional pam_exec.so type={half} {TATTLE}\n"
        stock = [other for other in lines(box) if TATTLE not in other]
        box.write(PAM, "".join([*stock, line]))
        finding = self.one_fault(box)
        assert half in finding.found
        self.mended(box, finding)

    def test_a_path_that_does_not_exist(self, box: Instance) -> None:
        box.write(PAM, box.read(PAM).replace(TATTLE, "/usr/local/bin/tattle-2"))
        finding = self.one_fault(box)
        assert "/usr/local/bin/tattle-2" in finding.found
        box.write("/usr/local/bin/tattle-2", "")  # so that a reset removes it
        box.path("/usr/local/bin/tattle-2").unlink()
        self.mended(box, finding)

    def test_another_file_than_this(self, box: Instance) -> None:
        box.write("/usr/local/bin/tattle-2", "#!/bin/sh\n", 0o755)
        box.write(PAM, box.read(PAM).replace(TATTLE, "/usr/local/bin/tattle-2"))
        finding = self.one_fault(box)
        assert "/usr/local/bin/tattle-2" in finding.found
        self.mended(box, finding)

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
            found = [Finding(**one) for one in json.loads(box.run(command).stdout)]
            assert list(faults(found)) == ["pam sshd"]
            self.mended(box, faults(found)["pam sshd"])

    def test_another_owner(self, box: Instance) -> None:
        with restored(box, TATTLE):
            os.chown(box.path(TATTLE), 6002, 0)
            self.mended(box, self.one_fault(box))

    def test_a_folder_above_it_that_others_may_write(self, box: Instance) -> None:
        with restored(box, "/usr/local/bin"):
            box.path("/usr/local/bin").chmod(0o777)
            finding = self.one_fault(box)
            assert "/usr/local/bin" in finding.found
            self.mended(box, finding)

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
        (pam,) = (finding for finding in found if finding.check == "pam sshd")
        number = stock.count("\n") + 1
        where = f"/etc/pam.d/ours:{included.count(chr(10))}" if included else f"{PAM}:{number}"
        assert f"{where} " in pam.found
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
        found = self.one_fault(box).found
        assert f"{PAM}:{number}" in found
        assert f"{PAM}:{number + 1}" in found


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
    NAME = "user environment sshd"
    HOLE = "session required pam_env.so user_readenv=1\n"
    UNSET = "".join(f"{name} DEFAULT= OVERRIDE=\n" for name in sorted(UNSECURE))
    MEND = "session required pam_env.so conffile=/etc/security/tattle_env.conf readenv=0\n"

    def test_stock_debian_lets_users_set_variables(self, box: Instance) -> None:
        box.configure_pam(user_readenv=True)
        found = faults(check(box))
        assert list(found) == [self.NAME]
        number = next(
            n for n, line in enumerate(box.read(PAM).splitlines(), 1) if "user_readenv" in line
        )
        assert f"{PAM}:{number}" in found[self.NAME].found
        follow(box, found[self.NAME].advice)
        assert faults(check(box)) == {}
        box.write("/home/ubuntu/.pam_environment", "X DEFAULT=y\n", owner="ubuntu")
        assert box.ssh("ubuntu", "echo $X").stdout == "\n"

    def test_in_an_included_file(self, box: Instance) -> None:
        box.write("/etc/pam.d/hole", f"# a comment\n{self.HOLE}")
        box.write(PAM, f"@include hole\n{box.read(PAM)}")
        found = faults(check(box))
        assert "/etc/pam.d/hole:2" in found[self.NAME].found
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
        assert f"{PAM}:1 " in found[self.NAME].found  # where the line begins

    @pytest.mark.parametrize(
        "line",
        [f"# {HOLE}", "session required pam_env.so # user_readenv=1\n", HOLE.replace("=1", "=0")],
    )
    def test_what_is_no_hole(self, line: str, box: Instance) -> None:
        box.write(PAM, f"{line}{box.read(PAM)}")
        assert faults(check(box)) == {}

    def test_a_file_that_unsets_what_the_loader_obeys_mends_it_too(self, box: Instance) -> None:
        box.write("/etc/security/tattle_env.conf", f"# a comment\n{self.UNSET}")
        box.write(PAM, f"{self.HOLE}{self.MEND}{box.read(PAM)}")
        assert faults(check(box)) == {}

    @pytest.mark.parametrize("slip", ["before the hole", "behind the hook", "one missing", "gone"])
    def test_a_slip_in_that_mend(self, slip: str, box: Instance) -> None:
        stock = box.read(PAM)
        stack = {
            "before the hole": f"{self.MEND}{self.HOLE}{stock}",
            "behind the hook": f"{self.HOLE}{stock}{self.MEND}",
        }.get(slip, f"{self.HOLE}{self.MEND}{stock}")
        unset = self.UNSET.replace(
            "LD_AUDIT DEFAULT= OVERRIDE=\n", "" if "one" in slip else "\\g<0>"
        )
        box.write("/etc/security/tattle_env.conf", self.UNSET if "one" not in slip else unset)
        if slip == "gone":
            box.path("/etc/security/tattle_env.conf").unlink()
        box.write(PAM, stack)
        assert list(faults(check(box))) == [self.NAME]


class TestSshd:
    def test_pam_that_is_off(self, box: Instance) -> None:
        box.write("/etc/ssh/sshd_config", f"{box.read('/etc/ssh/sshd_config')}\n")
        box.write("/etc/ssh/sshd_config.d/test.conf", "UsePAM no\n")
        found = faults(check(box))
        assert list(found) == ["sshd"]
        assert "UsePAM" in found["sshd"].found
        follow(box, found["sshd"].advice)
        assert faults(check(box)) == {}

    def test_a_configuration_that_is_broken(self, box: Instance) -> None:
        box.write("/etc/ssh/sshd_config.d/broken.conf", "Rubbish yes\n")
        found = faults(check(box))
        assert list(found) == ["sshd"]
        assert "broken.conf" in found["sshd"].found
        box.write("/etc/ssh/sshd_config.d/broken.conf", "")
        assert faults(check(box)) == {}

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
        told = {finding.check for finding in found}
        assert "pam login" in told
        assert "pam sshd" not in told


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
        assert SPOOL in found["spool"].found
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
        (spool,) = (f for f in check(box) if f.check == "spool")
        assert spool.ok  # it may be on its way
        assert spool.found.startswith("1 waiting")
        old = f"{time.time_ns() - 3600 * 10**9:020d}-{name.partition('-')[2]}"
        (box.path(SPOOL) / name).rename(box.path(SPOOL) / old)
        found = faults(check(box))
        assert list(found) == ["spool"]
        assert re.search(r"1 waiting, .*(36\d\d s|60 min|1 h)", found["spool"].found)
        follow(box, found["spool"].advice)
        assert faults(check(box)) == {}

    def test_what_was_set_aside(self, box: Instance) -> None:
        (box.path(SPOOL) / "rubbish").write_text("")
        box.run([TATTLE, "flush"])
        found = faults(check(box))
        assert list(found) == ["rejected"]
        assert f"{SPOOL}/rejected" in found["rejected"].advice
        follow(box, found["rejected"].advice)
        assert faults(check(box)) == {}


class TestConfiguration:
    def test_a_slip(self, box: Instance) -> None:
        box.write(CONF, "[tattle]\nsource = org.example\nsauce = x\n")
        found = faults(check(box))
        assert list(found) == ["configuration"]
        assert f"{CONF}, line 3" in found["configuration"].found
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
    must speak of, and how somebody who follows it mends it."""

    provoke: Provoke
    finding: str
    found: str
    advice: str
    mend: Provoke
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
        imds(fault="hang"), "identity", "does not answer", "http-endpoint", imds(fault=None)
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
        "endpoint",
        f"{EVENTBRIDGE_HOST} does not resolve",
        "name|DNS|Dns",
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
        "events:PutEvents",
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
    assert re.search(case.found, finding.found), finding
    assert re.search(case.advice, finding.advice), finding
    case.mend(box)
    assert faults(check(box, *case.arguments)) == {}


@pytest.mark.parametrize(
    "name", ["no role", "a certificate that has ended", "a clock that is behind"]
)
def test_one_fault_is_not_taken_for_others(name: str, box: Instance) -> None:
    """What depends on the broken thing may say that it can't tell, and no more."""
    case = SURROUNDINGS[name]
    case.provoke(box)
    for finding in faults(check(box)).values():
        assert finding.check == case.finding or finding.found.startswith("can't be checked")


class TestSend:
    def test_an_event_goes_out_and_its_id_is_told(self, box: Instance) -> None:
        found = {finding.check: finding for finding in check(box, "--send")}
        (entry,) = box.eventbridge.entries()
        assert entry.raw["DetailType"] == "tattle check"
        assert (entry.raw["Source"], entry.raw["Resources"]) == ("com.unbounce.tattle", [ARN])
        assert json.loads(entry.raw["Detail"])["hostname"] == HOSTNAME
        assert abs(entry.raw["Time"] - time.time()) < 60
        assert found["send"].ok
        assert entry.event_id in found["send"].found


class TestOutput:
    GREEN, RED = "\033[32m", "\033[31m"

    def test_colour_is_for_a_terminal(self, box: Instance) -> None:
        box.imds.set(role=None)
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"])
        assert done.returncode == 1
        assert self.GREEN in done.stdout
        assert self.RED in done.stdout
        assert "\033" not in box.run([TATTLE, "check"]).stdout

    @pytest.mark.parametrize("value", ["1", "0"])
    def test_and_not_where_it_is_unwanted(self, value: str, box: Instance) -> None:
        done = box.run([*ON_A_TERMINAL, TATTLE, "check"], env={"NO_COLOR": value})
        assert done.returncode == 0
        assert "\033" not in done.stdout

    def test_json_is_never_coloured(self, box: Instance) -> None:
        done = box.run([*ON_A_TERMINAL, TATTLE, "check", "--json"])
        assert json.loads(done.stdout)

    def test_a_terminal_without_the_signs_gets_words(self, box: Instance) -> None:
        box.imds.set(role=None)
        done = box.run([TATTLE, "check"], env={"LC_ALL": "C", "LANG": "C"})
        assert done.returncode == 1
        assert done.stdout.isascii()
        marks = {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")}
        assert len(marks) == 2
        assert not any("?" in mark or "\\" in mark for mark in marks)

    def test_what_others_chose_cant_steer_the_terminal(self, box: Instance) -> None:
        box.write(CONF, "[tattle]\n\x1b]0;x\x07 = 1\n")
        done = box.run([TATTLE, "check"])
        assert done.returncode == 1
        assert "\x1b" not in done.stdout

    def test_a_reader_that_leaves_early_gets_no_traceback(self, box: Instance) -> None:
        done = box.run(["/bin/bash", "-c", f"{TATTLE} check | head -n 1; exit ${{PIPESTATUS[0]}}"])
        assert "Traceback" not in done.stderr


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
        told = {finding.check: finding.ok for finding in found}
        assert told.pop("versions")
        assert told.pop("pam sshd")
        assert told.pop("user environment sshd")
        names = ["sshd", "spool", "configuration", "identity", "role", "endpoint", "send"]
        assert told == dict.fromkeys(names, False)

    def test_a_probe_that_fails_in_an_unforeseen_way_says_so(self, box: Instance) -> None:
        box.run(["mount", "--bind", "/dev/null", "/usr/sbin/sshd"], check=True)
        try:
            found = faults(check(box))
        finally:
            box.run(["umount", "/usr/sbin/sshd"], check=True)
        assert list(found) == ["sshd"]
        assert found["sshd"].found.startswith("can't be checked: ")

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
        assert list(found) == ["endpoint"]
        assert "name" in found["endpoint"].advice

    def test_probes_at_the_same_time_never_stand_in_each_others_way(self, box: Instance) -> None:
        for _ in range(8):
            assert faults(check(box)) == {}
