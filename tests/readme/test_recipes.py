"""The recipes for the host: each is what it claims to be, and safe to apply twice. The recipes for
consumers are in test_consumers_recipes.py."""

from __future__ import annotations

import configparser
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import readme_blocks as readme
from standins.instance import PAM_ENVIRONMENT, SPOOL, TATTLE, Instance
from support import ROOT, find_pythons, hcl, need
from tattle.errors import TattleError
from tattle.event import config
from tattle.event.fields import FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.shell import recipe

FOLDER = ROOT / "src" / "tattle" / "recipes"
NAMES = recipe.names()
UNITS = [name for name in NAMES if name.endswith((".service", ".timer"))]
PAM_FILE = "/etc/pam.d/sshd"
PAM_LINE = "session    optional     pam_exec.so /usr/local/bin/tattle"  # the original's
NO_CHECKSUM = "0" * 64
SYSTEMD = "/etc/systemd/system"
LONGEST_SHUTDOWN = 30  # seconds that people wait for it
LONGEST_PURPOSE = 100  # characters: `tattle recipe` prints it behind a name
A = "210987654321"  # an account
PLACEHOLDER = "arn:aws:events:us-east-1:012345678901:event-bus/default"
ELSEWHERE = "arn:aws:events:us-east-1:222222222222:event-bus/x"


class TestList:
    @pytest.mark.parametrize(("name", "purpose"), recipe.recipes())
    def test_each_is_printed_as_it_is_and_has_one_line_in_the_list(
        self, name: str, purpose: str
    ) -> None:
        assert recipe.text(name) == (FOLDER / name).read_text("utf-8")
        assert recipe.text(name).endswith("\n")
        assert purpose.isprintable()
        assert 0 < len(purpose) <= LONGEST_PURPOSE

    def test_only_json_has_its_line_elsewhere(self) -> None:
        assert {*recipe.PURPOSES} == {name for name in NAMES if name.endswith(".json")}

    @pytest.mark.parametrize("name", ["nothing", "", "../__init__.py", "iam", "/etc/passwd"])
    def test_an_unknown_name_is_refused_with_advice(self, name: str) -> None:
        with pytest.raises(TattleError) as raised:
            recipe.text(name)
        assert raised.value.status == os.EX_USAGE
        similar = "there is iam-policy.json and iam-role.yaml"
        expected = similar if name == "iam" else "`tattle recipe` lists"
        assert raised.value.advice.startswith(expected)

    @pytest.mark.parametrize("python", find_pythons().values(), ids=find_pythons().keys())
    def test_they_are_found_in_an_archive(self, tmp_path: Path, python: str) -> None:
        with zipfile.ZipFile(tmp_path / "tattle.zip", "w") as archive:
            for file in (ROOT / "src").rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, f"site-packages/{file.relative_to(ROOT / 'src')}")
        code = "from tattle.shell import recipe; print(recipe.recipes(), recipe.text('pam'))"
        done = subprocess.run(
            [python, "-c", code],
            env={"PYTHONPATH": str(tmp_path / "tattle.zip" / "site-packages")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == f"{recipe.recipes()} {recipe.text('pam')}\n", done.stderr


class TestIamPolicy:
    def test_it_is_json_as_it_stands(self) -> None:
        (statement,) = json.loads(recipe.text("iam-policy.json"))["Statement"]
        assert statement["Action"] == "events:PutEvents"
        assert statement["Resource"] == PLACEHOLDER

    @pytest.mark.parametrize(
        ("place", "buses", "resource"),
        [
            (("aws", "eu-west-1", A), [""], f"arn:aws:events:eu-west-1:{A}:event-bus/default"),
            (("aws-cn", "cn-north-1", A), ["x"], f"arn:aws-cn:events:cn-north-1:{A}:event-bus/x"),
            (("aws", "eu-west-1", A), [ELSEWHERE], ELSEWHERE),
            (
                ("aws", "eu-west-1", A),
                ["x", ELSEWHERE],
                [f"arn:aws:events:eu-west-1:{A}:event-bus/x", ELSEWHERE],
            ),
        ],
    )
    def test_it_is_filled_in_for_an_instance(
        self, place: tuple[str, str, str], buses: list[str], resource: object
    ) -> None:
        filled = json.loads(recipe.iam_policy(*place, buses))
        reporting, *looking = filled["Statement"]
        assert reporting["Resource"] == resource
        reporting["Resource"] = PLACEHOLDER
        assert reporting == json.loads(recipe.text("iam-policy.json"))["Statement"][0]
        assert [one["Resource"] for one in looking] == ([resource] if buses != [""] else [])
        assert {one["Action"] for one in looking} <= {"events:DescribeEventBus"}


class TestConfiguration:
    def test_it_changes_nothing_as_it_stands(self) -> None:
        assert config.parse(recipe.text("tattle.conf")) == config.Config()

    def test_it_is_valid_with_every_line_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "trusted", lambda path: path)  # the ca-bundle may not be here
        text = re.sub(r"(?m)^#(?=\[|[a-z-]+ = )", "", recipe.text("tattle.conf"))
        settings = config.parse(text)
        for key in config.KEYS:
            assert getattr(settings, key.replace("-", "_")) is not None, key
        assert settings.services["sudo"].detail_type == "sudo session"

    def test_it_has_every_key_and_no_other(self) -> None:
        main, _, service = recipe.text("tattle.conf").partition("#[service sudo]")
        found = [re.findall(r"(?m)^#([a-z-]+) = ", part) for part in (main, service)]
        assert found == [[*config.KEYS], [*config.PER_SERVICE]]

    def test_the_defaults_it_shows_are_the_defaults(self) -> None:
        shown = dict(re.findall(r"(?m)^#([a-z-]+) = (.*)$", recipe.text("tattle.conf")))
        assert f"#source = {config.Config().source}\n" in recipe.text("tattle.conf")
        assert f"#detail-type = {config.Config().detail_type}\n" in recipe.text("tattle.conf")
        assert " ".join(config.Config().fields) in recipe.text("tattle.conf")
        assert (shown["use-fips"], shown["use-dualstack"]) == ("false", "false")

    def test_it_names_every_field(self) -> None:
        text, _, _ = recipe.text("tattle.conf").partition("#fields")
        for field in (*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:NAME"):
            assert re.search(rf"(?m)^# .*\b{field}\b", text), field


class TestUnits:
    def parsed(self, name: str) -> configparser.RawConfigParser:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(recipe.text(name))
        return unit

    def test_systemd_has_nothing_to_say(self, tmp_path: Path, artifact: Path) -> None:
        need(shutil.which("systemd-analyze"), "needs systemd-analyze")
        for name in UNITS:
            (tmp_path / name).write_text(recipe.text(name).replace(TATTLE, str(artifact)))
        verify = [
            "systemd-analyze",
            "verify",
            "--man=no",
            *(str(tmp_path / name) for name in UNITS),
        ]
        done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
        ours = [line for line in done.stderr.splitlines() if "tattle" in line]
        assert (done.returncode, ours) == (0, [])
        with open(tmp_path / UNITS[0], "a") as unit:
            unit.write("NoSuchThing=1\n")
        done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
        assert "NoSuchThing" in done.stderr  # else it would say nothing of anything

    def test_what_is_run(self) -> None:
        assert self.parsed("tattle.service")["Service"]["ExecStart"] == f"{TATTLE} flush"
        assert self.parsed("tattle-shutdown.service")["Service"]["ExecStop"] == f"{TATTLE} flush"
        assert self.parsed("tattle-check.service")["Service"]["ExecStart"] == (
            f"{TATTLE} check --send"
        )

    def test_the_timer_and_cron_are_as_often(self) -> None:
        assert self.parsed("tattle.timer")["Timer"]["OnCalendar"] == "*:0/5"
        assert "\n*/5 * * * * root " in recipe.text("tattle.cron")

    def test_the_last_flush_comes_between_the_sessions_end_and_the_networks(self) -> None:
        """systemd stops in the reverse of the order in which it starts."""
        unit = self.parsed("tattle-shutdown.service")
        before = {"systemd-user-sessions.service", "ssh.service", "sshd.service"}
        assert {*unit["Unit"]["Before"].split()} == before
        assert unit["Unit"]["After"] == "network.target"
        assert (unit["Service"]["Type"], unit["Service"]["RemainAfterExit"]) == ("oneshot", "true")
        assert int(unit["Service"]["TimeoutStopSec"]) <= LONGEST_SHUTDOWN

    @pytest.mark.parametrize("starts", ["tattle.timer", "tattle-check.timer"])
    def test_a_comment_says_how_to_install_the_pair(self, starts: str) -> None:
        started = Path(starts).with_suffix(".service").name
        assert f"for unit in {starts} {started}; do" in recipe.text(starts)
        assert "sudo tee /etc/systemd/system/$unit" in recipe.text(starts)
        assert f"systemctl enable --now {starts}" in recipe.text(starts)
        assert f"# {starts} starts it and says how to install both." in recipe.text(started)


class TestCron:
    def test_the_line_delivers(self, instance: Instance) -> None:
        (line,) = [one for one in recipe.text("tattle.cron").splitlines() if one[0] != "#"]
        *when, user, command = line.split(maxsplit=6)
        assert (len(when), user) == (5, "root")
        instance.eventbridge.set(fault=500)
        instance.hook()
        instance.kill_deliverers()
        instance.eventbridge.set(fault=None)
        done = instance.run(["/bin/sh", "-c", command])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(instance.eventbridge.entries()) == 1


@pytest.fixture
def bare(instance: Instance, artifact: Path) -> Instance:
    """An instance without tattle, with the built file and the recipes in a folder of root's."""
    instance.uninstall()
    instance.write("/root/tattle", artifact.read_bytes(), 0o755)
    for name in NAMES:
        instance.write(f"/root/recipes/{name}", recipe.text(name))
    return instance


def lines_of_tattle(box: Instance) -> list[str]:
    return [line for line in box.read(PAM_FILE).splitlines() if "tattle" in line]


def typed(name: str) -> list[str]:
    """What a recipe's comment says to type: what is indented, or follows `Install:`."""
    return re.findall(r"(?m)^#(?: Install:)? {2,}(\S.*|  \S.*)$", recipe.text(name))


def run_twice(box: Instance, commands: list[str]) -> None:
    """By root, for whom sudo does nothing; `tattle recipe` is not in the artifact's place here."""
    ours = 'tattle() { cat "/root/recipes/$2"; }\nsudo() { "$@"; }\nsystemctl() { :; }\n'
    for _ in range(2):
        done = box.run(["/bin/bash", "-euc", ours + "\n".join(commands)])
        assert done.returncode == 0, done.stderr


class TestComments:
    @pytest.mark.parametrize(
        ("name", "installed"),
        [
            ("tattle.conf", {"/etc/tattle.conf": "tattle.conf"}),
            ("tattle.cron", {"/etc/cron.d/tattle": "tattle.cron"}),
            (
                "tattle.timer",
                {f"{SYSTEMD}/tattle.{k}": f"tattle.{k}" for k in ("timer", "service")},
            ),
            (
                "tattle-shutdown.service",
                {f"{SYSTEMD}/tattle-shutdown.service": "tattle-shutdown.service"},
            ),
            (
                "tattle-check.timer",
                {f"{SYSTEMD}/tattle-check.{k}": f"tattle-check.{k}" for k in ("timer", "service")},
            ),
        ],
    )
    def test_what_they_say_to_type_installs_it(
        self, bare: Instance, name: str, installed: dict[str, str]
    ) -> None:
        for path in installed:
            bare.write(path, "")  # for the reset to take away
        run_twice(bare, typed(name))
        for path, source in installed.items():
            assert bare.read(path) == recipe.text(source)


class TestPam:
    LINES: ClassVar = readme.text("the-pam-lines").splitlines()
    BEFORE: ClassVar = readme.text("lines-before-wait").splitlines()
    WAITING = f"{PAM_LINE} --wait=5"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ([], LINES),
            ([PAM_LINE], LINES),
            ([f"-session\toptional pam_exec.so  {TATTLE} "], LINES),
            ([WAITING], [*BEFORE, WAITING]),
            ([PAM_LINE.replace("so", "so quiet")], [*BEFORE, PAM_LINE.replace("so", "so quiet")]),
            ([WAITING.replace("optional", "required")],) * 2,
            ([PAM_LINE.replace("optional    ", "[success=ok default=die]")],) * 2,
        ],
    )
    def test_it_adds_the_lines_once_and_keeps_what_an_admin_chose(
        self, bare: Instance, before: list[str], after: list[str]
    ) -> None:
        stock = bare.read(PAM_FILE)
        bare.write(PAM_FILE, stock + "\n".join(before))  # the last line may have no end
        (bare.path("/etc/pam.d") / "sshd").rename(bare.path("/etc/pam.d") / "elsewhere")
        (bare.path("/etc/pam.d") / "sshd").symlink_to("elsewhere")
        command, _ = typed("pam")
        for changes in (True, False):
            script = command.replace("tattle", "/root/tattle").replace("sudo", "")
            done = bare.run(["/bin/sh", "-c", f"umask 077; {script}"])
            assert (done.returncode, done.stderr) == (0, "")
            assert ("changed: " in done.stdout) == (changes and before != after)
            assert bare.read(PAM_FILE).splitlines() == [*stock.splitlines(), *after]
            environment = bare.path(PAM_ENVIRONMENT)
            assert environment.exists() == any(PAM_ENVIRONMENT in line for line in after)
            assert not environment.exists() or environment.stat().st_mode & 0o777 == 0o644
        assert (bare.path("/etc/pam.d") / "elsewhere").exists()

    @pytest.mark.parametrize("stock", ["debian", "rhel9"])
    @pytest.mark.parametrize("line", ["", PAM_LINE, WAITING.replace("optional", "required")])
    def test_early_is_before_what_puts_a_session_into_its_slice_and_domain(
        self, bare: Instance, stock: str, line: str
    ) -> None:
        etc = ROOT / "tests/unit/pam.d/rhel9/etc"
        included = "/etc/pam.d/common-session"
        brings = (
            r"@include common-session$|session.*pam_selinux\.so open$"  # sid has the latter first
        )
        if stock == "rhel9":
            included, brings = "/etc/pam.d/password-auth", r"session.*pam_selinux\.so open"
            text = (etc / "pam.d/sshd").read_text()
            bare.write(PAM_FILE, text.replace(f"{PAM_LINE}\n", ""))
            bare.write(included, (etc / "authselect/password-auth").read_text())
        else:
            bare.write(included, f"{bare.read(included)}session optional pam_systemd.so\n")
        text = bare.read(PAM_FILE)
        found = re.search(f"^({brings})", text, re.MULTILINE)
        assert found
        before, after = text[: found.start()], text[found.start() :]
        bare.write(PAM_FILE, f"{text}{line}\n")
        ours = f"{line}\n" if "required" in line else readme.text("the-pam-lines")
        *_, command = typed("pam")
        script = command.replace("tattle", "/root/tattle").replace("sudo", "")
        for _ in range(2):
            done = bare.run(["/bin/sh", "-c", script])
            assert (done.returncode, done.stderr) == (0, "")
            assert bare.read(PAM_FILE).rstrip() == f"{before}{ours}{after}".rstrip()


class TestCloudInit:
    def command(self, artifact: Path | None) -> list[str]:
        text = recipe.text("cloud-init.yaml")
        assert text.startswith("#cloud-config\n")
        (command,) = yaml.safe_load(text)["runcmd"]
        filled = [
            part.replace("https://example.com/tattle", "file:///root/tattle") for part in command
        ]
        assert filled != command
        digest = hashlib.sha256(artifact.read_bytes()).hexdigest() if artifact else NO_CHECKSUM
        return [part.replace(NO_CHECKSUM, digest) for part in filled]

    def test_it_installs_tattle_however_often_it_runs(self, bare: Instance, artifact: Path) -> None:
        need(shutil.which("curl"), "needs curl")
        for _ in range(2):
            done = bare.run(self.command(artifact))
            assert done.returncode == 0, done.stderr
        assert lines_of_tattle(bare) == TestPam.LINES
        assert "user_readenv=1" not in bare.read(PAM_FILE)
        assert bare.ssh("ubuntu", "true").returncode == 0
        opened, closed = bare.eventbridge.wait_for(2)
        assert (opened.detail["session"], closed.detail["session"]) == ("opened", "closed")

    def test_it_installs_nothing_else(self, bare: Instance) -> None:
        need(shutil.which("curl"), "needs curl")
        assert bare.run(self.command(None)).returncode != 0
        assert not bare.path(TATTLE).exists()
        assert lines_of_tattle(bare) == []


class TestSsm:
    def command(self, artifact: Path | None) -> list[str]:
        """What AWS-RunShellScript would run, with the place and checksum of this file."""
        loaded = importlib.import_module("cfnlint.decode.cfn_yaml").load(str(FOLDER / "ssm.yaml"))
        (script,) = loaded["Resources"]["Install"]["Properties"]["Parameters"]["commands"]
        digest = hashlib.sha256(artifact.read_bytes()).hexdigest() if artifact else NO_CHECKSUM
        filled = script["Fn::Sub"].replace("${Url}", "file:///root/tattle")
        return ["sh", "-c", filled.replace("${Sha256}", digest)]

    def test_it_installs_tattle_and_fetches_it_once(self, bare: Instance, artifact: Path) -> None:
        need(shutil.which("curl"), "needs curl")
        for _ in range(2):
            done = bare.run(self.command(artifact))
            assert done.returncode == 0, done.stdout + done.stderr
            bare.path("/root/tattle").unlink(missing_ok=True)  # there is nothing to fetch again
            bare.run(["install", "-d", "-m", "700", SPOOL, f"{SPOOL}/rejected/x"])  # a warning
        assert bare.path(TATTLE).read_bytes() == artifact.read_bytes()
        assert lines_of_tattle(bare) == TestPam.LINES
        assert "user_readenv=1" not in bare.read(PAM_FILE)

    def test_it_installs_nothing_else(self, bare: Instance) -> None:
        need(shutil.which("curl"), "needs curl")
        assert bare.run(self.command(None)).returncode != 0
        assert not bare.path(TATTLE).exists()
        assert lines_of_tattle(bare) == []

    def test_it_fails_where_the_check_does(self, bare: Instance, artifact: Path) -> None:
        need(shutil.which("curl"), "needs curl")
        bare.write("/etc/tattle.conf", "nonsense\n")
        assert bare.run(self.command(artifact)).returncode == 1


class TestPacker:
    """Run, but for Packer: its steps in an instance in the builder's place."""

    def test_what_it_refers_to_is_there(self) -> None:
        parsed = hcl(recipe.text("image.pkr.hcl"))
        (source,) = (
            f"{kind}.{name}" for one in parsed["source"] for kind in one for name in one[kind]
        )
        assert parsed["build"][0]["sources"] == [f"source.{source}"]
        variables = {name for one in parsed["variable"] for name in one}
        assert {*re.findall(r"\bvar\.(\w+)", recipe.text("image.pkr.hcl"))} == variables

    @pytest.mark.parametrize("role", ["tattle", None])
    def test_an_image_has_tattle_and_no_event(
        self, bare: Instance, artifact: Path, role: str | None
    ) -> None:
        """Whether the builder may deliver what waits or not; nor the end of Packer's session."""
        steps = hcl(recipe.text("image.pkr.hcl"))["build"][0]["provisioner"]
        file, install, last = (settings for step in steps for settings in step.values())
        bare.write(file["destination"], artifact.read_bytes())
        self.step(bare, install)
        assert lines_of_tattle(bare) == TestPam.LINES
        bare.accept("packer")
        bare.imds.set(role=role)
        self.step(bare, last)
        assert [*bare.arrived()] == (["packer"] if role else [])
        assert bare.hook("close_session").returncode == 0
        bare.kill_deliverers()
        bare.run(["umount", SPOOL], check=True)  # as the builder's end does
        assert bare.spool() == []

    def step(self, box: Instance, settings: Any) -> None:
        box.write("/tmp/script", "\n".join(settings["inline"]))
        command = settings["execute_command"].replace("{{ .Path }}", "/tmp/script")
        done = box.run(["sh", "-c", 'sudo() { "$@"; }\n' + command])
        assert done.returncode == 0, done.stderr


class TestAnsible:
    """Ansible itself is not among the test tools: the playbook's steps are compared."""

    def test_the_playbook_installs_the_same(self) -> None:
        (play,) = yaml.safe_load(recipe.text("ansible.yaml"))
        tasks = [value for task in play["tasks"] for key, value in task.items() if "." in key]
        copy, dry_run, readenv, lines, check = tasks
        assert (copy["dest"], copy["mode"]) == (TATTLE, "0755")
        assert dry_run == f"{TATTLE} --dry-run"
        assert {*play["tasks"][1]["environment"]} == {"PAM_TYPE", "PAM_USER", "PAM_RHOST"}
        stock = "session required pam_env.so user_readenv=1 envfile=/etc/default/locale"
        without = "session required pam_env.so envfile=/etc/default/locale"
        assert re.sub(readenv["regexp"], "", stock) == without
        assert readenv["path"] == PAM_FILE
        assert lines["cmd"].endswith(f"{TATTLE} recipe pam | sh")
        assert check == f"{TATTLE} check"
