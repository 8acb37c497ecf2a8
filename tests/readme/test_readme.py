"""README.md tells the truth: its commands run, its examples are what tattle sends, its tables are
what the source has. The recipes for consumers are in test_consumers.py."""

from __future__ import annotations

import configparser
import fnmatch
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import botocore.session
import pytest
import yaml
from botocore.config import Config as ClientConfig
from botocore.utils import resolve_imds_endpoint_mode

import readme_blocks as readme
import tattle
from conftest import Tattle
from standins.eventbridge import EventBridge, Rejection
from standins.imds import ROLE_NOT_ASSUMABLE, Imds, identity_document, role_credentials
from standins.instance import SPOOL, TATTLE, Instance
from support import ROOT, eventually, need
from tattle import config, deliver, pamd, process, spool
from tattle.delivery.fields import DEFAULT, FROM_INSTANCE, FROM_SESSION, FROM_SSHD, detail
from tattle.login.pam import parse
from tattle.login.spool import is_record

CHECKOUT = "/tmp/checkout"  # inside the instance
PAM_FILE = "/etc/pam.d/sshd"
PAM_LINE = "session    optional     pam_exec.so /usr/local/bin/tattle"
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "ubuntu", "PAM_RHOST": "1.2.3.4"}
LOGIN_REFUSED = 254  # sshd's status where PAM refuses the session

# What each command is run by, and why some are run by no test.
RUN = {
    "install": "TestInstall",
    "smoke-test": "TestInstall",
    "pam-line": "TestInstall",
    "check": "TestInstall",
    "uninstall": "TestInstall",
    "flush": "TestSpool",
    "rejected-look": "TestSpool",
    "rejected-return": "TestSpool",
    "pam-line-sudo": "TestInstall",
    "readenv-find": "TestUserReadenv",
    "readenv-mend": "TestUserReadenv",
    "cloudformation-deploy": "test_consumers.TestCloudFormation",
    "aws-cli": "test_consumers.TestAwsCli",
}
NOT_RUN = {
    "build": "makes the artifact that all these tests run, before they start",
    "build-test": "runs these tests",
    "demo": "builds before it runs tests/demo.py, which test_smoke.py runs",
    "bench": "is run by hand: nothing is timed in a test",
    "systemd": "needs systemd as the first process; the units themselves are verified",
    "journal": "needs journald; what is logged is tested all over",
}


def session(variables: Mapping[str, str]) -> Any:
    return parse(b"".join(f"{name}={value}\0".encode() for name, value in variables.items()))


def run(box: Instance, *names: str) -> subprocess.CompletedProcess[str]:
    """Run blocks as they stand, by root, in a folder that has dist/tattle; sudo does nothing."""
    script = 'sudo() { "$@"; }\n' + "".join(readme.text(name) for name in names)
    return box.run(["/bin/bash", "-euo", "pipefail", "-c", f"cd {CHECKOUT}\n{script}"])


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def bare(instance: Instance, artifact: Path) -> Instance:
    """An instance without tattle, and the built file in a checkout's place."""
    stock = [line for line in instance.read(PAM_FILE).splitlines() if TATTLE not in line]
    instance.write(PAM_FILE, "\n".join(stock) + "\n")
    instance.write(TATTLE, "", 0o755)  # for the reset to bring back
    instance.path(TATTLE).unlink()
    instance.write(f"{CHECKOUT}/dist/tattle", artifact.read_bytes(), 0o755)
    return instance


class TestBlocks:
    def test_every_command_is_run_or_says_why_not(self) -> None:
        commands = {one.name for one in readme.blocks() if one.language == "sh"}
        assert commands == {*RUN, *NOT_RUN}
        assert not {*RUN} & {*NOT_RUN}

    def test_names_are_given_once(self) -> None:
        names = [one.name for one in readme.blocks() if one.name]
        assert len(names) == len(set(names))

    def test_shell_is_shell(self) -> None:
        for one in readme.blocks():
            if one.language == "sh":
                done = subprocess.run(["/bin/bash", "-n"], input=one.text, text=True)
                assert done.returncode == 0, one

    def test_json_is_json(self) -> None:
        for one in readme.blocks():
            if one.language == "json":
                json.loads(one.text)

    def test_ini_is_ini(self) -> None:
        for one in readme.blocks():
            if one.language == "ini":
                configparser.RawConfigParser(strict=False).read_string(one.text)

    def test_yaml_is_yaml(self) -> None:
        for one in readme.blocks():
            if one.language == "yaml" and one.name != "cloudformation":  # that has tags of its own
                assert yaml.safe_load(one.text)

    def test_links_within_it_lead_somewhere(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", readme.prose())
        assert links
        for link in links:
            if link.startswith("#"):
                assert link[1:] in readme.anchors(), link
            elif not link.startswith("https://"):
                assert (ROOT / link).exists(), link

    def test_files_it_names_are_there(self) -> None:
        for name in set(
            re.findall(r"`((?:src|tests|dist)/[\w./]+|\w+\.(?:lock|sh))`", readme.prose())
        ):
            assert (ROOT / name).exists(), name

    def test_the_python_line_is_the_artifacts(self, artifact: Path) -> None:
        first = artifact.read_bytes().split(b"\n", 1)[0].decode()
        assert f"`{first[2:]}`" in readme.prose()

    def test_licences_are_in_the_file(self, artifact: Path) -> None:
        with zipfile.ZipFile(artifact) as archive:
            assert b"MIT" in archive.read("LICENSES.txt")


class TestEvent:
    @pytest.mark.parametrize(
        ("name", "kind"), [("opened", "open_session"), ("closed", "close_session")]
    )
    def test_it_is_what_the_artifact_sends(
        self, tattle: Tattle, eventbridge: EventBridge, name: str, kind: str
    ) -> None:
        done = tattle(env={**LOGIN, "PAM_TYPE": kind})
        assert done.returncode == 0, done.stderr
        (entry,) = eventbridge.entries()
        shown = readme.text(f"event-{name}")
        event = json.loads(shown)
        assert [*event] == ["detail-type", "source", "resources", "detail"]
        assert event["detail-type"] == entry.raw["DetailType"]
        assert event["source"] == entry.raw["Source"]
        assert event["resources"] == entry.raw["Resources"]
        (line,) = re.findall(r'^  "detail": (.+)$', shown, re.MULTILINE)
        assert line == entry.raw["Detail"], "byte for byte"


class TestInstall:
    def test_from_nothing_to_both_events_and_back(self, bare: Instance) -> None:
        before = bare.read(PAM_FILE)
        bare.write("/etc/ca.pem", bare.ca.pem)
        bare.write("/home/alice/.aws/config", "[default]\nca_bundle = /etc/ca.pem\n", owner="alice")

        ran(run(bare, "install"))
        done = bare.run(["/bin/sh", "-c", readme.text("smoke-test")], user="alice")
        assert re.fullmatch(r"sent: session opened for test, event id \S+\n", ran(done))
        ran(run(bare, "pam-line"))
        assert bare.read(PAM_FILE) == f"{before}{PAM_LINE}\n"
        ran(bare.ssh("ubuntu", "true"))
        smoke, opened, closed = bare.eventbridge.wait_for(3)
        assert smoke.detail["username"] == "test"
        assert opened.detail == json.loads(readme.text("event-opened"))["detail"]
        assert closed.detail == json.loads(readme.text("event-closed"))["detail"]

        ran(run(bare, "install"))  # the upgrade
        ran(bare.ssh("ubuntu", "true"))
        bare.eventbridge.wait_for(5)

        for path in ("/etc/tattle.conf", "/etc/cron.d/tattle", "/etc/security/tattle_env.conf"):
            bare.write(path, "# to be removed\n")
        ran(run(bare, "uninstall"))
        assert bare.read(PAM_FILE) == before
        left = bare.run(["find", "/etc", "/usr/local", "/var", "/run", "-name", "*tattle*"])
        assert left.stdout == ""

    def test_tattle_check_is_content_with_it(self, bare: Instance) -> None:
        ran(run(bare, "install", "pam-line", "readenv-mend"))
        told = ran(run(bare, "check"))
        assert "✗" not in told

    def test_the_same_line_serves_sudo(self, bare: Instance) -> None:
        bare.write("/etc/pam.d/sudo", "@include common-session-noninteractive\n")
        ran(run(bare, "pam-line-sudo"))
        assert bare.read("/etc/pam.d/sudo").endswith(f"\n{PAM_LINE}\n")

    def test_the_pam_line_is_the_same_everywhere(self) -> None:
        everywhere = "\n".join(one.text for one in readme.blocks())
        lines = [line for line in everywhere.splitlines() if "pam_exec.so /usr" in line]
        for line in lines:
            assert PAM_LINE in line
        assert len(lines) >= 6

    def test_cloud_init_installs_it(self, bare: Instance, artifact: Path) -> None:
        need(shutil.which("curl"), "needs curl")
        text = readme.text("cloud-init")
        assert text.startswith("#cloud-config\n")
        (command,) = yaml.safe_load(text)["runcmd"]
        digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
        place = ["https://example.com/tattle", f"file://{CHECKOUT}/dist/tattle"]
        filled = [part.replace(*place).replace("0" * 64, digest) for part in command]
        assert filled != command
        ran(bare.run(filled))
        assert bare.read(PAM_FILE).endswith(f"\n{PAM_LINE}\n")
        assert "user_readenv=1" not in bare.read(PAM_FILE)
        ran(bare.ssh("ubuntu", "true"))
        bare.eventbridge.wait_for(2)

    def test_cloud_init_installs_nothing_else(self, bare: Instance) -> None:
        """With the checksum as it stands in the README, which is no file's."""
        need(shutil.which("curl"), "needs curl")
        (command,) = yaml.safe_load(readme.text("cloud-init"))["runcmd"]
        place = ["https://example.com/tattle", f"file://{CHECKOUT}/dist/tattle"]
        assert bare.run([part.replace(*place) for part in command]).returncode != 0
        assert not bare.path(TATTLE).exists()
        assert TATTLE not in bare.read(PAM_FILE)

    def test_the_playbook_does_the_same(self) -> None:
        """Ansible itself is not run here; it was, by hand, in an instance like these."""
        (play,) = yaml.safe_load(readme.text("ansible"))
        copy, dry_run, mend, line = play["tasks"]
        assert copy["ansible.builtin.copy"]["dest"] == TATTLE
        assert copy["ansible.builtin.copy"]["mode"] == "0755"
        assert dry_run["ansible.builtin.command"] == f"{TATTLE} --dry-run"
        assert {*dry_run["environment"]} == {*LOGIN}
        stock = "session required pam_env.so user_readenv=1 envfile=/etc/default/locale"
        mended = re.sub(mend["ansible.builtin.replace"]["regexp"], "", stock)
        assert mended == "session required pam_env.so envfile=/etc/default/locale"
        assert line["ansible.builtin.lineinfile"]["line"] == PAM_LINE
        assert re.search(line["ansible.builtin.lineinfile"]["regexp"], PAM_LINE)
        assert mend["ansible.builtin.replace"]["path"] == PAM_FILE
        assert line["ansible.builtin.lineinfile"]["path"] == PAM_FILE


class TestPamLine:
    WAIT = 4  # seconds; a login takes less, even where much else runs

    @pytest.mark.parametrize("row", readme.table_after("## The PAM line"), ids=lambda row: row[0])
    def test_the_table_is_true(self, instance: Instance, row: list[str]) -> None:
        line, *expected = row
        control, _, option = re.sub(r"`|…|tattle|=5", "", line).strip().partition(" ")
        arguments = [f"{option.strip()}={self.WAIT}"] if option.strip() else []
        outcomes = []
        for fault in (None, "hang", "broken"):
            instance.reset()
            instance.configure_pam(*arguments, control=control)
            if fault == "broken":
                instance.write(TATTLE, "#!/bin/sh\nexit 1\n", 0o755)
            else:
                instance.eventbridge.set(fault=fault)
            began = time.monotonic()
            status = instance.ssh("ubuntu", "true").returncode
            waited = time.monotonic() - began >= self.WAIT
            assert status in (0, LOGIN_REFUSED)
            outcomes.append((status == 0, waited))
        logged_in = ["**no login**" not in cell for cell in expected]
        assert [ok for ok, _ in outcomes] == logged_in
        assert outcomes[1][1] == ("after 5 s" in expected[1])

    def test_a_login_refused_has_its_event_and_no_other(self, instance: Instance) -> None:
        instance.configure_pam("--wait=1", control="required")
        instance.eventbridge.set(fault="hang")
        assert instance.ssh("ubuntu", "true").returncode == LOGIN_REFUSED
        instance.eventbridge.set(fault=None)
        instance.kill_deliverers()
        ran(instance.run([TATTLE, "flush"]))
        assert {one["session"] for one in instance.eventbridge.details()} == {"opened"}


class TestSpool:
    def test_flush(self, instance: Instance) -> None:
        instance.write(f"{CHECKOUT}/here", "")
        instance.eventbridge.set(fault=500)
        with instance.session() as parent:
            for _ in range(3):
                parent.hook()
        instance.kill_deliverers()
        instance.eventbridge.set(fault=None)
        assert ran(run(instance, "flush")) == "3 delivered, 0 remain\n"
        assert "`3 delivered, 0 remain`" in readme.prose()

    def test_a_record_set_aside_can_be_looked_at_and_put_back(self, instance: Instance) -> None:
        instance.write(f"{CHECKOUT}/here", "")
        rule = Rejection("mallory", "MalformedDetail", "Detail is malformed.")
        instance.eventbridge.set(rejections=[rule])
        instance.hook(user="mallory")
        rejected = instance.path(f"{SPOOL}/rejected")
        eventually(lambda: rejected.is_dir() and [*rejected.iterdir()])
        told = ran(run(instance, "rejected-look")).splitlines()
        assert "PAM_USER=mallory" in told
        assert told[0].startswith(f"{SPOOL}/rejected/")
        instance.eventbridge.set(rejections=[])
        instance.kill_deliverers()
        ran(run(instance, "rejected-return"))
        assert [one["username"] for one in instance.eventbridge.details()] == ["mallory"]

    def test_the_numbers_are_the_sources(self) -> None:
        words = " ".join(readme.prose().split())
        assert f"The spool takes {spool.LIMIT:,} events" in words
        assert f"up to {deliver.FIRST_PAUSE:.0f} s at first" in words
        assert f"doubling to up to {deliver.LONGEST_PAUSE:.0f} s" in words
        assert f"After {deliver.PATIENCE / 60:.0f} minutes without a success" in words
        assert (deliver.BATCH, deliver.LINGER) == (10, 5)
        assert "up to ten in a call" in words
        assert "it stays five seconds for the next event" in words
        assert (process.WAIT, process.LONGEST_WAIT) == (5, 600)
        assert "or after five seconds; `--wait=SECONDS` sets another time, at most 600" in words


class TestUserReadenv:
    def test_find_and_mend(self, instance: Instance) -> None:
        instance.write(f"{CHECKOUT}/here", "")
        instance.configure_pam(user_readenv=True)
        found = ran(run(instance, "readenv-find"))
        assert found.startswith(f"{PAM_FILE}:")
        ran(run(instance, "readenv-mend"))
        nothing = run(instance, "readenv-find")
        assert (nothing.returncode, nothing.stdout) == (1, "")

    def test_the_check_gives_the_same_command(self, instance: Instance) -> None:
        instance.configure_pam(user_readenv=True)
        told = instance.run([TATTLE, "check"]).stdout
        (advice,) = re.findall(r"sed -i '\d*s/.*user_readenv.*$", told, re.MULTILINE)
        shown = readme.text("readenv-mend").strip()
        assert re.sub(r"'\d+s/", "'s/", advice) == shown.replace("sudo ", "")

    def test_the_other_mend_satisfies_the_check(self, instance: Instance) -> None:
        instance.configure_pam(user_readenv=True)
        stock = [line for line in instance.read(PAM_FILE).splitlines() if TATTLE not in line]
        lines = readme.text("pam_env-lines")
        assert lines.splitlines()[-1] == PAM_LINE
        instance.write(PAM_FILE, "\n".join(stock) + f"\n{lines}")
        path = readme.text("pam_env").splitlines()[0][2:]
        assert f"conffile={path}" in lines
        instance.write(path, readme.text("pam_env"))
        findings = json.loads(instance.run([TATTLE, "check", "--json"]).stdout)
        (about,) = [one for one in findings if one["check"].startswith("user environment sshd")]
        assert about["ok"], about

    def test_the_list_is_whole(self) -> None:
        text = readme.text("pam_env")
        unset = re.findall(r"^(\w+) DEFAULT= OVERRIDE=$", text, re.MULTILINE)
        assert {*unset} >= {*pamd.UNSECURE}
        for name in unset:  # pam_env logs an error where it unsets what is not set
            assert f"\n{name} DEFAULT=x\n{name} DEFAULT= OVERRIDE=\n" in text + "\n"


class TestUnits:
    def write(self, folder: Path, artifact: Path) -> list[Path]:
        files = []
        for name in ("tattle.path", "tattle.service"):
            text = readme.text(name)
            assert text.startswith(f"# /etc/systemd/system/{name}\n")
            files.append(folder / name)
            files[-1].write_text(text.replace(TATTLE, str(artifact)))
        return files

    def test_systemd_has_nothing_to_say(self, tmp_path: Path, artifact: Path) -> None:
        need(shutil.which("systemd-analyze"), "needs systemd-analyze")
        files = [str(file) for file in self.write(tmp_path, artifact)]
        command = ["systemd-analyze", "verify", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        ours = [line for line in done.stderr.splitlines() if "tattle" in line]
        assert (done.returncode, ours) == (0, [])

    def test_the_service_has_all_it_needs(self, instance: Instance) -> None:
        """What of its hardening can be had without systemd: no capability, no new privileges."""
        unit = configparser.RawConfigParser(strict=False)
        unit.read_string(readme.text("tattle.service"))
        assert unit["Service"]["CapabilityBoundingSet"] == ""
        assert unit["Service"]["NoNewPrivileges"] == "true"
        instance.eventbridge.set(fault=500)
        instance.hook()
        instance.kill_deliverers()
        instance.eventbridge.set(fault=None)
        hardened = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        told = ran(instance.run([*hardened, *unit["Service"]["ExecStart"].split()]))
        assert told == "1 delivered, 0 remain\n"

    def test_the_path_unit_sees_records_and_nothing_else(self) -> None:
        unit = configparser.RawConfigParser()
        unit.read_string(readme.text("tattle.path"))
        folder, _, pattern = unit["Path"]["PathExistsGlob"].rpartition("/")
        assert folder == SPOOL
        name = f"{time.time_ns():020d}-4711"
        assert is_record(name)
        assert fnmatch.fnmatch(name, pattern)
        for other in ("rejected", f".accepting-{name}"):
            assert not fnmatch.fnmatch(other, pattern)

    def test_the_line_for_cron_delivers(self, instance: Instance) -> None:
        *when, user, command = readme.text("cron").strip().split(maxsplit=6)
        assert (len(when), user) == (5, "root")
        instance.eventbridge.set(fault=500)
        instance.hook()
        instance.kill_deliverers()
        instance.eventbridge.set(fault=None)
        done = instance.run(["/bin/sh", "-c", command])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(instance.eventbridge.entries()) == 1


class TestConfiguration:
    def test_the_example_is_one(self) -> None:
        text = readme.text("configuration")
        assert text.startswith("# /etc/tattle.conf\n")
        settings = config.parse(text)
        assert settings.source == "com.example.fleet"
        assert settings.of("sudo").detail_type == "sudo session"
        assert settings.of("sudo").source == settings.source

    def test_the_keys_are_the_sources(self) -> None:
        assert [readme.code(row[0])[0] for row in readme.table("keys")] == [*config._READERS]

    def test_the_defaults_are_the_sources(self) -> None:
        plain = config.Config()
        shown = {readme.code(row[0])[0]: row[2] for row in readme.table("keys")}
        assert shown["source"] == f"`{plain.source}`"
        assert shown["detail-type"] == f"`{plain.detail_type}`"
        assert shown["fields"] == f"`{' '.join(plain.fields)}`"
        for key in {*shown} - {"source", "detail-type", "fields"}:
            assert getattr(plain, key.replace("-", "_")) is None

    def test_what_a_service_may_set(self) -> None:
        text = (
            readme.prose()
            .partition("`[service NAME]` sets ")[2]
            .partition(" for one PAM service")[0]
        )
        assert tuple(readme.code(text)) == config.PER_SERVICE

    def test_the_fields_are_the_sources(self) -> None:
        shown = [readme.code(row[0])[0] for row in readme.table("fields")]
        assert shown == [*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:NAME"]
        assert tuple(shown[:3]) == DEFAULT
        text = "\n".join(readme.prose().split("\n\n"))
        for field in FROM_SSHD:
            assert re.search(rf"`{field}`.* come from variables that\s+sshd", text, re.DOTALL)

    def test_the_examples_are_what_a_session_gives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-5")
        key = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
        moment = {
            "TATTLE_TIME": "1767323045678901234",
            "TATTLE_UPTIME": "161000000000",
            "TATTLE_PARENT": "4711",
            "TATTLE_PARENT_START": str(100 * 100),
            "TATTLE_BOOT": "0b4f6c1e-5a3d-4c2b-9e8f-7a6b5c4d3e2f",
            "TATTLE_UNVERIFIED_SSH_CONNECTION": "1.2.3.4 50022 10.0.0.5 22",
            "TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": f"publickey ssh-ed25519 {key}\n",
        }
        pam = {
            "PAM_SERVICE": "sshd",
            "PAM_USER": "ubuntu",
            "PAM_TTY": "ssh",
            "PAM_RHOST": "1.2.3.4",
            "PAM_TYPE": "close_session",
        }
        shown = {
            readme.code(row[0])[0]: json.loads(readme.code(row[1])[0])
            for row in readme.table("fields")
        }
        fields = tuple(shown)
        document: Any = identity_document()

        def said(variables: Mapping[str, str]) -> Any:
            told = detail(
                session({**variables, **moment}),
                fields,
                document,
                lambda _: "bastion",
                lambda _: True,
            )
            return json.loads(told)

        of_sshd = said(pam)
        assert of_sshd.pop("remote_user") is None
        of_sudo = said({**pam, "PAM_SERVICE": "sudo", "PAM_RUSER": "alice"})
        assert shown.pop("remote_user") == of_sudo["remote_user"]
        assert shown == of_sshd


class TestPartitions:
    @pytest.mark.parametrize("row", readme.table("endpoints"), ids=lambda row: f"{row[0]}{row[1]}")
    def test_the_table_is_botocores(self, row: list[str]) -> None:
        (region,), settings, (arn,), (host,) = map(readme.code, row)
        aws = botocore.session.Session()
        client = aws.create_client(
            "events",
            region_name=region,
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=ClientConfig(
                **{f"{name.replace('-', '_')}_endpoint": True for name in settings}
            ),
        )
        assert client.meta.endpoint_url == f"https://{host}"
        assert f"arn:{aws.get_partition_for_region(region)}:" == arn

    def test_ipv6(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "config"
        file.write_text(readme.text("aws-config-ipv6"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        assert resolve_imds_endpoint_mode(botocore.session.Session()) == "ipv6"


class TestTables:
    def test_the_modules_are_the_sources(self) -> None:
        shown = {readme.code(row[0])[0] for row in readme.table("modules")}
        assert shown == {file.name for file in (ROOT / "src/tattle").glob("*.py")} - {"__init__.py"}

    def test_the_log_says_these(self) -> None:
        sources = "".join(file.read_text() for file in (ROOT / "src/tattle").glob("*.py"))
        for row in readme.table("log"):
            (message,) = readme.code(row[0])[:1]
            for part in re.split(r"…|/var/spool/tattle/rejected/", message):
                assert part.strip(" :,").partition(", ")[0] in sources, message

    def test_every_line_of_the_log_is_there(self) -> None:
        told = [readme.code(row[0])[0] for row in readme.table("log")]
        for path in (ROOT / "src" / "tattle").glob("*.py"):
            for begins in re.findall(r'\b(?:sys)?log\([^"]*f"([^"{]+)', path.read_text()):
                assert any(one.startswith(begins.strip()) for one in told), begins


# How to provoke a failure: settings of IMDS, settings of EventBridge, variables.
Provocation = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
NOWHERE = "http://127.0.0.1:9"


def provocations() -> dict[str, Provocation]:
    """By the beginning of the table's message, and for a row with several causes by any of them."""
    return {
        "no PAM_TYPE": ({}, {}, {"PAM_TYPE": None}),
        "PAM_TYPE is": ({}, {}, {"PAM_TYPE": "auth"}),
        "no PAM_USER": ({}, {}, {"PAM_USER": None}),
        "EventBridge rejected": (
            {},
            {"rejections": [Rejection("ubuntu", "MalformedDetail", "Detail is malformed.")]},
            {},
        ),
        "IMDS at … can't": ({}, {}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": NOWHERE}),
        "IMDS at … does not": ({"fault": "hang"}, {}, {}),
        "IMDS at … answers 403": ({"fault": 403}, {}, {}),
        "IMDS at … answers …": ({"fault": 404}, {}, {}),
        "IMDS at … is disabled": ({}, {}, {"AWS_EC2_METADATA_DISABLED": "true"}),
        "EventBridge can't": ({}, {"fault": "reset"}, {}),
        "EventBridge's answer": ({}, {"fault": "rubbish"}, {}),
        "EventBridge: Throttling": ({}, {"fault": "throttle"}, {}),
        "EventBridge: Internal": ({}, {"fault": 500}, {}),
        "no credentials: IMDS at … answers 404": ({"role": None}, {}, {}),
        "no credentials: IMDS at … asked for the credentials of the role … gives none": (
            {"credentials": ROLE_NOT_ASSUMABLE},
            {},
            {},
        ),
        "no credentials: IMDS at … asked for the credentials of the role … gives malformed": (
            {"credentials": role_credentials(Token=None)},
            {},
            {},
        ),
        "EventBridge: AccessDenied": ({}, {"fault": "access-denied"}, {}),
        "EventBridge: InvalidSignature": ({}, {"clock_skew": 3600}, {}),
        "configuration:": ({}, {}, {"AWS_PROFILE": "nobody"}),
    }


ELSEWHERE = {
    "an event of": "PAM gives no such name: test_failures.py",
    "can't unpack": "test_failures.py",
    "a defect of": "there is none that could be provoked",
    "another tattle": "takes a minute: test_outage.py",
    "… belongs to": "test_config.py",
    "/etc/tattle.conf": "test_config.py",
    "nobody knows": "test_partitions.py",
}


def beginning(message: str, among: Iterable[str]) -> str | None:
    return next((one for one in among if message.startswith(one)), None)


class TestFailures:
    rows: ClassVar = [
        (readme.code(row[0])[0], int(row[1])) for row in readme.table_after("## Failure conditions")
    ]

    def test_every_row_is_tested(self) -> None:
        for message, _ in self.rows:
            assert beginning(message, [*provocations(), *ELSEWHERE]), message
        for one in (*provocations(), *ELSEWHERE):
            assert any(message.startswith(one) for message, _ in self.rows), one

    def test_what_is_tested_elsewhere_reads_as_tattle_says_it(self) -> None:
        source = "".join(path.read_text() for path in (ROOT / "src" / "tattle").glob("*.py"))
        for message in (message for message, _ in self.rows if beginning(message, ELSEWHERE)):
            for words in filter(None, map(str.strip, re.split("…|,|[0-9:]+", message))):
                assert words in source, message

    @pytest.mark.parametrize(
        ("message", "status"), [row for row in rows if beginning(row[0], provocations())]
    )
    def test_it_prints_that_and_ends_with_that(
        self, tattle: Tattle, imds: Imds, eventbridge: EventBridge, message: str, status: int
    ) -> None:
        for_imds, for_eventbridge, env = provocations()[beginning(message, provocations()) or ""]
        imds.set(**for_imds)
        eventbridge.set(**for_eventbridge)
        done = tattle(env={**LOGIN, **env})
        assert re.fullmatch(f"tattle: {readme.as_pattern(message)}\n", done.stderr), done.stderr
        assert done.returncode == status

    def test_statuses_are_those_of_the_source(self) -> None:
        known = {value for name, value in vars(tattle).items() if name.startswith("EX_")}
        assert {status for _, status in self.rows} <= known
