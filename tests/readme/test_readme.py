"""README.md tells the truth: its commands run, its examples are what tattle sends, its tables are
what the source has. The recipes that it links are tested in test_recipes.py and
test_consumers_recipes.py."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import readme_blocks as readme
from check_json import IDS
from conftest import Tattle
from messages import FAILURES, Failure
from standins.eventbridge import EventBridge, Rejection
from standins.imds import identity_document
from standins.instance import SPOOL, TATTLE, Instance
from standins.large_keys import LargeKey, certificate, security_key
from support import ROOT, eventually, need
from tattle import unpack
from tattle.delivery import batches, deliver, due, records, watchdog
from tattle.event import accounts, config
from tattle.event.fields import DEFAULT, FROM_INSTANCE, FROM_SESSION, FROM_SSHD, detail
from tattle.login import hook, spool
from tattle.login.pam import Session, parse
from tattle.shell import check, recipe, report, selinux
from tattle.shell.finding import Finding
from tools.bench import tables as bench

SOURCE = ROOT / "src" / "tattle"
CHECKOUT = "/tmp/checkout"  # inside the instance
PAM_FILE = "/etc/pam.d/sshd"
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "ubuntu", "PAM_RHOST": "1.2.3.4"}
LOGIN_REFUSED = 254  # sshd's status where PAM refuses the session

# What tests each block, each table (by its first heading) and each command inside a sentence.
BLOCKS = {
    "flow": "the picture of it",
    "try": "test_demo.py runs the one; these tests are the other",
    "release": "needs a release on GitHub",
    "aws": "TestDeployment in test_consumers_recipes.py runs it",
    "install": "TestInstall runs it",
    "pam-lines": "TestInstall runs it",
    "the-pam-lines": "TestInstall: what pam-lines adds",
    "lines-before-wait": "TestPamLines",
    "pam-line-sudo": "TestInstall runs it",
    "pam-lines-su": "TestInstall has su read it",
    "uninstall": "TestInstall runs it",
    "rejected": "TestSpool runs it",
    "check": "TestCheck",
    "event": "TestEvent",
    "pattern": "TestPatterns in test_consumers_recipes.py",
    "configuration": "TestConfiguration",
    "selinux": "TestCheck; what it installs is tested in unit/test_selinux.py",
    "build-test": "not run: it runs these tests",
    "": "the diagram",
}
TABLES = {
    "tattle or the log says": "TestFailures",
    "exit status": "TestFailures",
    "field": "TestFields",
    "the lines": "TestPamLines",
    "on the instance": "TestTables",
    "key": "TestConfiguration",
    "folder": "TestTables",
    "medians": "TestTables; the figures are not measured anew",
    "you see": "not compared: it leads to the sections",
    "what happened": "./build.sh distros has these as scenarios: tools/distros/witnesses.py",
    "EventBridge": "not compared: four shutdowns, as they were seen",
    "": "not compared: a price, and what was measured",
    "path": "TestTables",
    "distribution": "not compared: `./build.sh distros` prints it",
    "instead of tattle": "not compared: it is about others",
}
CHECK_SEND = "sudo /usr/local/bin/tattle check --send"
FLUSH = "sudo /usr/local/bin/tattle flush"
FIND_READENV = "grep -n '^[^#]*user_readenv=1' /etc/pam.d/*"
LICENCES = "unzip -p dist/tattle LICENSES.txt"
INLINE = {
    CHECK_SEND: "TestInstall runs it",
    FLUSH: "TestSpool runs it",
    FIND_READENV: "TestInstall runs it",
    LICENCES: "TestBlocks runs it",
    "./build.sh help": "TestBlocks runs it",
    "./build.sh": "makes the artifact that all these tests run, before they start",
    "./build.sh bench": "takes minutes; test_bench.py goes once through it",
    "./build.sh distros": "takes minutes and a mirror of Debian's: by hand",
    "sudo journalctl -t tattle": "needs journald; what is logged is tested all over",
    "sudo systemctl disable --now tattle.timer tattle-shutdown.service tattle-check.timer": (
        "needs systemd as process 1"
    ),
    "semodule -r tattle": "needs SELinux",
    "sudo fuser -v /var/spool/tattle": "only looks; whoever it is is another one each time",
    "./build.sh audit": "asks a service on the network",
    "sudo ss -tanpe": "only looks; whoever holds the ports is another one each time",
    "semanage port -a -t http_port_t -p tcp PORT": "needs SELinux",
}
COMMAND = re.compile(r"(sudo [/a-z]|grep |unzip |\./build\.sh|semodule |semanage ).*")


def session(variables: Mapping[str, str]) -> Session:
    return parse(b"".join(f"{name}={value}\0".encode() for name, value in variables.items()))


def run(box: Instance, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands as they stand, by root, in a folder that has dist/tattle; sudo does nothing."""
    script = f'sudo() {{ "$@"; }}\ncd {CHECKOUT}\n{commands}'
    return box.run(["/bin/bash", "-euo", "pipefail", "-c", script])


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources() -> str:
    return "".join(file.read_text() for file in sorted(SOURCE.rglob("*.py")))


@pytest.fixture
def bare(instance: Instance, artifact: Path) -> Instance:
    """An instance without tattle, and the built file in a checkout's place."""
    instance.uninstall()
    instance.write(f"{CHECKOUT}/dist/tattle", artifact.read_bytes(), 0o755)
    return instance


class TestBlocks:
    def test_every_command_and_table_is_tested_or_says_why_not(self) -> None:
        assert sorted(one.name for one in readme.blocks()) == sorted(BLOCKS)
        assert {*re.findall(r"(?m)^\| ?([^|\n]*?) ?\|.*\n\|-", readme.prose())} == {*TABLES}
        assert {*filter(COMMAND.fullmatch, readme.code(readme.prose()))} == {*INLINE}

    def test_shell_is_shell(self) -> None:
        for one in readme.blocks():
            if one.language == "sh":
                done = subprocess.run(["/bin/bash", "-n"], input=one.text, text=True)
                assert done.returncode == 0, one

    def test_links_lead_somewhere(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", readme.prose())
        assert links
        for link in links:
            if link.startswith("#"):
                assert link[1:] in readme.anchors(), link
            elif not link.startswith("https://"):
                assert (ROOT / link).exists(), link

    def test_tests_it_names_are_there(self) -> None:
        for command in readme.commands(readme.text("build-test")):
            for name in command.split()[2:3]:
                assert (ROOT / "tests" / name).exists(), command
        assert {"unit", "artifact", "instance", "readme"} <= {*readme.code(readme.prose())}

    def test_commands_and_options_it_names_are_tattles(self, tattle: Tattle) -> None:
        known = "".join(ran(tattle(*words, "--help")) for words in ([], ["check"]))
        for named in readme.code(readme.prose()):
            for word in re.findall(r"^tattle ([a-z-]+)|^tattle .*(--[a-z-]+)", named):
                assert "".join(word) in known, named

    @pytest.mark.parametrize(
        ("command", "says"), [("./build.sh help", "demo"), (LICENCES, "MIT License")]
    )
    def test_what_it_says_of_the_checkout(self, command: str, says: str, artifact: Path) -> None:
        need(shutil.which("unzip"), "needs unzip")
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
        assert says in ran(done)


class TestEvent:
    @pytest.mark.parametrize("kind", ["open_session", "close_session"])
    def test_it_is_what_the_artifact_sends(
        self, tattle: Tattle, eventbridge: EventBridge, kind: str
    ) -> None:
        done = tattle(env={**LOGIN, "PAM_TYPE": kind})
        assert done.returncode == 0, done.stderr
        (entry,) = eventbridge.entries()
        shown = readme.text("event")
        if kind == "close_session":
            assert "At logout `session` is `closed`" in readme.words()
            shown = shown.replace('"opened"', '"closed"')
        event = json.loads(shown)
        assert [*event] == ["detail-type", "source", "resources", "detail"]
        assert event["detail-type"] == entry.raw["DetailType"]
        assert event["source"] == entry.raw["Source"]
        assert event["resources"] == entry.raw["Resources"]
        assert f'"detail": {entry.raw["Detail"]}}}\n' in shown, "byte for byte"


class TestInstall:
    def test_from_nothing_to_both_events_and_back(self, bare: Instance) -> None:
        """Its commands twice, as an upgrade is: nothing is reported twice."""
        assert "**Upgrade** by [the install commands](#install)" in readme.words()
        stock = bare.read(PAM_FILE)
        for times in (1, 2):
            assert re.fullmatch(r"sent: .*\n", ran(run(bare, readme.text("install"))))
            ran(run(bare, readme.text("pam-lines")))
            lines = readme.text("the-pam-lines")
            assert bare.read(PAM_FILE) == stock.replace(" user_readenv=1", "") + lines
            ran(bare.ssh("ubuntu", "true"))
            entries = bare.eventbridge.wait_for(3 * times)
        smoke, opened, closed = (entry.detail for entry in entries[-3:])
        assert smoke["username"] == "test"
        assert opened == json.loads(readme.text("event"))["detail"]
        assert closed == {**opened, "session": "closed"}
        assert "✗" not in ran(run(bare, CHECK_SEND))

        bare.write("/etc/tattle.conf", "# to be removed\n")
        bare.write("/etc/cron.d/tattle", "# to be removed\n")
        for unit in (name for name in recipe.names() if name.endswith((".service", ".timer"))):
            bare.write(f"/etc/systemd/system/{unit}", "# to be removed\n")
        ran(run(bare, readme.text("uninstall")))
        assert bare.read(PAM_FILE) == stock.replace(" user_readenv=1", "")
        left = bare.run(["find", "/etc", "/usr/local", "/var", "/run", "-name", "*tattle*"])
        assert left.stdout == ""

    def test_the_smoke_test_needs_no_root(self, bare: Instance) -> None:
        bare.write("/etc/ca.pem", bare.ca.pem)
        bare.write("/home/alice/.aws/config", "[default]\nca_bundle = /etc/ca.pem\n", owner="alice")
        *installing, smoke_test = readme.commands(readme.text("install"))
        ran(run(bare, "\n".join(installing)))
        assert ran(bare.run(["/bin/sh", "-c", smoke_test], user="alice")).startswith("sent: ")

    def test_sudo_and_su_are_reported_once(self, bare: Instance) -> None:
        """Debian's sudo-i includes nothing of sudo's, RHEL's does, and some have no such file.
        What su's lines are for is shown in tests/instance/test_su.py."""
        stock = "session required pam_permit.so\n"
        (line,) = re.findall("(session.*pam_exec.*)'", readme.text("pam-line-sudo"))
        line += "\n"
        included = ("session include sudo\n", "session\tsubstack\tsudo\n")
        for own, expected in (*zip(included, included), (stock, stock + line)):
            bare.write("/etc/pam.d/sudo", stock)
            bare.write("/etc/pam.d/sudo-i", own)
            for _ in range(2):
                ran(run(bare, readme.text("pam-line-sudo")))
            assert bare.read("/etc/pam.d/sudo") == stock + line
            assert bare.read("/etc/pam.d/sudo-i") == expected
        for path in ("/etc/pam.d/su", "/etc/pam.d/su-l"):
            if bare.path(path).exists() and not re.search(r"include\s+su$", bare.read(path), re.M):
                bare.write(path, bare.read(path) + readme.text("pam-lines-su"))
        ran(run(bare, readme.text("install") + readme.text("pam-lines")))
        found = ran(run(bare, "sudo /usr/local/bin/tattle check"))
        assert {"pam su", "pam sudo", "pam sudo-i"} <= {*re.findall(r"pam [a-z-]+", found)}
        ran(bare.run(["su", "alice", "-c", "true"]))
        reported = [entry.detail["session"] for entry in bare.eventbridge.wait_for(3)[1:]]
        assert reported == ["opened", "closed"]

        bare.path("/etc/pam.d/sudo-i").unlink()
        ran(run(bare, readme.text("pam-line-sudo")))
        assert not bare.path("/etc/pam.d/sudo-i").exists()

    def test_user_readenv_is_found_and_removed(self, bare: Instance) -> None:
        bare.configure_pam(user_readenv=True)
        assert ran(run(bare, FIND_READENV)).startswith(f"{PAM_FILE}:")
        ran(run(bare, readme.commands(readme.text("pam-lines"))[0]))
        nothing = run(bare, FIND_READENV)
        assert (nothing.returncode, nothing.stdout) == (1, "")


class TestPamLines:
    WAIT = 2  # seconds; what the table calls 5
    AT_ONCE = 10  # less than this: a hook that waited for EventBridge would wait longer
    ROWS: ClassVar = readme.table("the lines")

    def configure(self, box: Instance, row: str) -> bool:
        """Write the lines that a row of the table is about. Do they wait?"""
        line = re.search("`(.*)`", row)
        control, _, option = re.sub("… tattle|=5", "", line[1] if line else "").partition(" ")
        arguments = [f"{option.strip()}={self.WAIT}"] if option.strip() else []
        box.configure_pam(*arguments, control=control, user_readenv=False)
        if row.startswith("the "):
            *_, last = box.read(PAM_FILE).splitlines(keepends=True)
            lines = (
                readme.text("lines-before-wait") + last if line else readme.text("the-pam-lines")
            )
            box.configure_pam(lines=lines, user_readenv=False)
        return bool(arguments)

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
    def test_the_table_is_true(self, instance: Instance, row: list[str]) -> None:
        for fault, cell in zip((None, "hang", "broken"), row[1:]):
            instance.reset()
            can_wait = self.configure(instance, row[0])
            if fault == "broken":
                instance.write(TATTLE, "#!/bin/sh\nexit 1\n", 0o755)
            else:
                instance.eventbridge.set(fault=fault)
            began = time.monotonic()
            status = instance.ssh("ubuntu", "true").returncode
            seconds = time.monotonic() - began
            eventually(lambda: instance.processes("sshd") == [])
            assert status == (LOGIN_REFUSED if "**no login**" in cell else 0), cell
            waits = can_wait and fault == "hang"
            assert ("after 5 s" in cell) == waits
            assert seconds >= self.WAIT if waits else seconds < self.AT_ONCE, cell
            if "the event waits" in cell:  # and none twice
                assert len(instance.spool()) == (1 if "**no login**" in cell else 2)
            else:
                eventually(lambda: not instance.spool())
            if fault is None:
                self.is_reported_once(instance)

    @pytest.mark.parametrize("key", [certificate, security_key])
    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
    def test_it_is_true_of_keys_that_are_too_large(
        self, instance: Instance, row: list[str], key: LargeKey
    ) -> None:
        self.configure(instance, row[0])
        with key(instance, "ubuntu") as options:
            done = instance.ssh("ubuntu", "echo in", options=options)
        eventually(lambda: instance.processes("sshd") == [])
        refused = "**no login**" in row[4]
        assert done.returncode == (LOGIN_REFUSED if refused else 0)
        assert done.stdout.endswith("in\n") == (not refused)
        if "reported" in row[4]:
            self.is_reported_once(instance)
        else:
            assert (instance.spool(), instance.eventbridge.entries()) == ([], [])

    def is_reported_once(self, box: Instance) -> None:
        states = [entry.detail["session"] for entry in box.eventbridge.wait_for(2)]
        assert states == ["opened", "closed"]
        eventually(lambda: not box.spool())
        assert len(box.eventbridge.entries()) == 2
        assert box.log() == []

    def test_a_refused_login_is_reported_as_opened_only(self, instance: Instance) -> None:
        instance.configure_pam("--wait=1", control="required")
        instance.eventbridge.set(fault="hang")
        assert instance.ssh("ubuntu", "true").returncode == LOGIN_REFUSED
        instance.eventbridge.set(fault=None)
        instance.kill_deliverers()
        ran(instance.run([TATTLE, "flush"]))
        assert {one["session"] for one in instance.eventbridge.details()} == {"opened"}


def number_of_copies() -> str:
    """How often a deliverer sends what may have arrived: with pauses that double, until it ends."""
    seconds, pause, copies = 0.0, due.RESEND_AFTER, 1
    while seconds + pause <= due.GIVE_UP_AFTER:
        seconds, pause, copies = seconds + pause, 2 * pause, copies + 1
    return ("no", "one", "two", "three", "four", "five", "six")[copies]


class TestSpool:
    def test_flush(self, bare: Instance, artifact: Path) -> None:
        bare.install(artifact)
        bare.eventbridge.set(fault=500)
        with bare.session() as parent:
            for _ in range(3):
                parent.hook()
        bare.kill_deliverers()
        bare.eventbridge.set(fault=None)
        assert ran(run(bare, FLUSH)) == "3 delivered, 0 remain\n"

    def test_a_rejected_record_can_be_looked_at_and_sent_again(
        self, bare: Instance, artifact: Path
    ) -> None:
        bare.install(artifact)
        rule = Rejection("mallory", "MalformedDetail", "Detail is malformed.")
        bare.eventbridge.set(rejections=[rule])
        bare.hook(user="mallory")
        rejected = bare.path(f"{SPOOL}/rejected")
        eventually(lambda: rejected.is_dir() and [*rejected.iterdir()])
        look, *send_again = readme.commands(readme.text("rejected"))
        shown = ran(run(bare, look)).splitlines()
        assert "PAM_USER=mallory" in shown
        assert shown[0].startswith(f"{SPOOL}/rejected/")
        bare.eventbridge.set(rejections=[])
        bare.kill_deliverers()
        ran(run(bare, "\n".join(send_again)))
        assert [one["username"] for one in bare.eventbridge.details()] == ["mallory"]

    def test_the_numbers_are_the_sources(self) -> None:
        for words in (
            f"up to {batches.BATCH_SIZE} in a call",
            f"pauses of at most {due.FIRST_PAUSE:.0f} s, then {2 * due.FIRST_PAUSE:.0f} s,"
            f" up to {due.LONGEST_PAUSE:.0f} s",
            f"After {due.GIVE_UP_AFTER / 60:.0f} minutes without success",
            f"ends {deliver.LINGER_SECONDS:.0f} s after the last event",
            f"or {batches.TIMEOUT_SECONDS:.0f} seconds pass, before the answer",
            f"at most {number_of_copies()} copies in {due.GIVE_UP_AFTER / 60:.0f} minutes",
            f"no heartbeat for {watchdog.DEAD_AFTER[records.DELIVERER]:.0f} s",
            f"({hook.WAIT_SECONDS:.0f} unless given, at most {hook.LONGEST_WAIT_SECONDS:.0f})",
            f"less than {spool.FREE_BYTES >> 20} MiB or {spool.FREE_FILES} inodes",
            f"up to {spool.EMERGENCY_LIMIT} events wait in `{spool.EMERGENCY_PATH}`",
            f"is a file in `{spool.PATH}`",
            f"moves to `{spool.PATH}/{spool.REJECTED}`",
        ):
            assert words in readme.words()


class TestCheck:
    def test_the_json_is_as_it_is_shown(self) -> None:
        shown = json.loads(readme.text("check"))
        (finding,) = shown["findings"]
        assert json.loads(report.as_json([Finding(**finding)])) == shown
        assert finding["id"] in IDS
        assert finding["severity"] in check.STATUSES
        (severities,) = re.findall(r"`severity` \((.*?)\) and `schema` keep", readme.words())
        assert {*readme.code(severities)} == {*check.STATUSES}

    def test_the_marks_are_its_own(self) -> None:
        marks = (report.MARKS[severity] for severity in ("error", "warning", "skipped"))
        sentence = "{} is an error, {} a warning, {} was not looked at".format(*marks)
        assert sentence in readme.words()

    def test_what_to_do_about_selinux_is_its_advice(self) -> None:
        advice = selinux.INSTALL.replace("sudo ", "")
        assert " && ".join(readme.commands(readme.text("selinux"))) == advice


class TestTables:
    def test_every_recipe_is_linked_once(self) -> None:
        linked: list[str] = []
        for row in readme.table("on the instance"):
            linked += re.findall(r"\[([^]]+)\]\(src/tattle/recipes/\1\)", row[0])
        assert sorted(linked) == recipe.names()
        assert "`tattle recipe` lists these files" in readme.words()

    def test_every_module_is_named_and_no_other(self) -> None:
        shown = set()
        for folder, modules in readme.table("folder"):
            (name,) = readme.code(folder)
            shown |= {
                ROOT.joinpath("src/tattle", name.replace("src/tattle", ""), one)
                for one in re.findall(r"(?:^|· )`([^`]+)`", modules)
            }
        assert shown == {file for file in SOURCE.rglob("*.py") if file.name != "__init__.py"}

    def test_the_files_are_those_it_uses(self) -> None:
        named = {path for row in readme.table("path") for path in readme.code(row[0])}
        spools = {spool.PATH, spool.EMERGENCY_PATH}
        directories = {f"{spool.PATH}/{name}" for name in (*records.OWN,) if name[0] != "."}
        assert {*spools, *directories, *unpack.CACHES, config.PATH} <= named
        assert {spool.STANDBY, records.LAST_ERROR, records.WAKE} <= named

    def test_the_figures_are_lines_of_the_benchs(self) -> None:
        assert [*readme.table("medians", head=True)[0]] == bench.HEAD
        rows = readme.table("medians")
        assert [row[0] for row in rows] == [bench.WAITS, bench.ARRIVES, bench.THERE, bench.CPU]
        assert all(re.fullmatch(r"\d+ ms|", figure) for row in rows for figure in row[1:])
        on = r"`./build.sh bench` on \d+ CPUs \(.+?\), Python 3\.\d+, the spool on \w+"
        assert re.search(on, readme.words())


class TestConfiguration:
    def test_the_example_is_one(self) -> None:
        settings = config.parse(readme.text("configuration"))
        assert settings.event_bus
        assert settings.of("sudo").detail_type == "sudo session"
        assert settings.of("sudo").event_bus == settings.event_bus
        unit = configparser.RawConfigParser()
        unit.read_string(readme.text("configuration"))
        assert unit.sections() == ["tattle", "service sudo"]

    def test_the_keys_are_the_sources(self) -> None:
        shown = [key for row in readme.table("key") for key in readme.code(row[0])]
        assert shown == [*config.KEYS]

    def test_the_defaults_are_the_sources(self) -> None:
        plain = config.Config()
        shown = {key: row[2] for row in readme.table("key") for key in readme.code(row[0])}
        assert shown["source"] == f"`{plain.source}`"
        assert shown["detail-type"] == f"`{plain.detail_type}`"
        assert shown["fields"] == f"`{' '.join(plain.fields)}`"
        for key in {*shown} - {"source", "detail-type", "fields"}:
            assert getattr(plain, key.replace("-", "_")) is None

    def test_what_a_service_may_set(self) -> None:
        text = readme.words().partition("such as `[service sudo]` sets ")[2]
        shown = readme.code(text.partition(" for one PAM service")[0])
        assert tuple(shown) == config.PER_SERVICE


class TestFields:
    shown: ClassVar = {
        field: json.loads(example)
        for row in readme.table("field")
        for field, example in zip(readme.code(row[0]), readme.code(row[1]))
    }

    def test_they_are_the_sources(self) -> None:
        assert [*self.shown] == [*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:NAME"]
        assert tuple(self.shown)[:3] == DEFAULT
        *most, last = (f"`{field}`" for field in FROM_SSHD)
        assert f"{', '.join(most)} and {last} come from sshd's variables" in readme.words()

    def test_the_examples_are_what_a_session_gives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = (ROOT / "tests/unit/ssh-ed25519-cert.pub").read_text()
        told = '[ $1 = -u ] && echo 1000 || printf "ubuntu\\0sudo\\0"'
        (tmp_path / "id").write_text(f"#!/bin/sh\n{told}\n")
        (tmp_path / "id").chmod(0o755)
        monkeypatch.setattr(accounts, "ID", str(tmp_path / "id"))
        context = {
            "TATTLE_TIME": "1767323045678901234",
            "TATTLE_UPTIME": "161000000000",
            "TATTLE_PARENT": "4711",
            "TATTLE_PARENT_START": str(100 * 100),
            "TATTLE_HOST": "ip-10-0-0-5",
            "TATTLE_INSTANCE": "i-abc123abc123",
            "TATTLE_BOOT": "0b4f6c1e-5a3d-4c2b-9e8f-7a6b5c4d3e2f",
            "TATTLE_UNVERIFIED_SSH_CONNECTION": "1.2.3.4 50022 10.0.0.5 22",
            "TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": f"publickey {key}",
        }
        pam = {
            "PAM_SERVICE": "sshd",
            "PAM_USER": "ubuntu",
            "PAM_TTY": "ssh",
            "PAM_RHOST": "1.2.3.4",
            "PAM_TYPE": "close_session",
        }
        document: Any = identity_document()

        def fields(**variables: str) -> Any:
            accepted = session({**pam, **variables, **context})
            every = tuple(self.shown)
            return json.loads(detail(accepted, every, document, lambda _: "bastion", bool))

        assert {**fields(), "remote_user": "alice"} == self.shown
        assert fields()["remote_user"] is None
        assert fields(PAM_SERVICE="sudo", PAM_RUSER="alice")["remote_user"] == "alice"


# What is not in messages.py: said under PAM, to the log; and what a dead name server leads to.
NOT_IN_THAT_TABLE = {
    "no answer within … s from …",
    "refused: not an environment that pam_exec makes: …",
    "refused: neither open_session nor close_session: …",
    "a login's limit of … for … can't be lifted: …",
    "a defect: …",
    "an event is lost: …",
}


class TestFailures:
    rows: ClassVar = [
        (message, int(row[1]) if row[1] else None)
        for row in readme.table("tattle or the log says")
        for message in readme.code(row[0])
    ]

    def test_every_failure_has_its_row_and_every_row_its_failure(self) -> None:
        """That they come as they are written there is test_messages.py's."""

        def stands_for(row: tuple[str, int | None], failure: Failure) -> bool:
            message, status = row
            pattern = readme.as_pattern(message)
            return status == failure.status and bool(re.fullmatch(pattern, failure.message))

        for failure in FAILURES:
            assert any(stands_for(row, failure) for row in self.rows), failure.message
        for row in self.rows:
            if row[1] is not None and row[0] not in NOT_IN_THAT_TABLE:
                assert any(stands_for(row, failure) for failure in FAILURES), row

    def test_the_others_are_the_sources_words(self) -> None:
        source = sources()
        for message, status in self.rows:
            if status is None or message in NOT_IN_THAT_TABLE:
                for words in filter(None, (part.strip(" :,") for part in message.split("…"))):
                    assert words in source, message

    def test_every_line_of_the_log_is_there(self) -> None:
        shown = [message for message, _ in self.rows]
        for begins in re.findall(r'\blog\(\s*f?"([^"{]+)', sources()):
            assert any(one.startswith(begins.strip()) for one in shown), begins

    def test_the_statuses_are_the_sources(self) -> None:
        cells = [
            one for row in readme.table("exit status") for one in f"{row[0]}, {row[2]}".split(", ")
        ]
        used = {getattr(os, name) for name in re.findall(r"\b(?:os|posix)\.(EX_\w+)", sources())}
        assert {*map(int, cells)} == {*used, *check.STATUSES.values()}
        assert {status for _, status in self.rows if status} <= used
