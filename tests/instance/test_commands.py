"""The commands: what --dry-run, --version, --help and `tattle recipe` print, and for whom."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from moto.events.models import EventPattern

from standins.imds import identity_document
from standins.instance import TATTLE, Instance
from tattle.shell import recipe

pytestmark = pytest.mark.root

CONF = "/etc/tattle.conf"
NOWHERE = "http://127.0.0.1:9"
SHELL = {
    "AWS_ENDPOINT_URL": NOWHERE,
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": NOWHERE,
    "AWS_EC2_METADATA_DISABLED": "true",
    "HTTPS_PROXY": NOWHERE,
    "AWS_CA_BUNDLE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
    "HOME": "/nonexistent",
    "AWS_ACCESS_KEY_ID": "AKIASHELL",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "eu-west-1",
    "PAM_TYPE": "close_session",
    "PAM_USER": "mallory",
}
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "1.2.3.4"}


class TestDryRun:
    def test_it_prints_the_event_as_a_rule_gets_it_and_sends_nothing(
        self, instance: Instance
    ) -> None:
        done = instance.run([TATTLE, "--dry-run"], env=LOGIN)
        assert (done.returncode, done.stderr) == (0, "")
        event = json.loads(done.stdout)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["time"])
        assert instance.eventbridge.entries() == []
        # A pattern can be tried with it by `aws events test-event-pattern`, which moto leaves out.
        for session, matches in (("opened", True), ("closed", False)):
            pattern = {"source": [event["source"]], "detail": {"session": [session]}}
            tried = EventPattern.load(json.dumps(pattern)).matches_event(event)
            assert tried is matches

    def test_it_goes_with_no_command(self, instance: Instance) -> None:
        with instance.locked():
            instance.hook()
        for arguments in (["flush"], ["check"], ["check", "--send"], ["recipe"]):
            done = instance.run([TATTLE, "--dry-run", *arguments], env=LOGIN)
            assert (done.returncode, done.stdout) == (64, "")
            assert "--dry-run" in done.stderr
        assert len(instance.spool()) == 1
        assert instance.eventbridge.entries() == []


def test_a_shells_variables_do_not_reach_what_flush_sends(instance: Instance) -> None:
    instance.accept("ubuntu")
    done = instance.run([TATTLE, "flush"], env=SHELL)
    assert (done.returncode, done.stdout) == (0, "1 delivered, 0 remain\n"), done
    (entry,) = instance.eventbridge.entries()
    assert (entry.detail["username"], entry.detail["session"]) == ("ubuntu", "opened")
    assert "us-east-1:012345678901" in entry.raw["Resources"][0]


class TestSaidOfItself:
    def test_sent_names_event_bus_and_region(self, instance: Instance) -> None:
        sent = "sent: session opened for test, event id [0-9a-f-]{36}, event bus"
        done = instance.run([TATTLE], env=LOGIN)
        assert re.fullmatch(f"{sent} default in us-east-1\n", done.stdout)
        instance.resolve("events.eu-west-1.amazonaws.com")
        instance.write(CONF, "[tattle]\nevent-bus = logins\nregion = eu-west-1\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert re.fullmatch(f"{sent} logins in eu-west-1\n", done.stdout)

    def test_version_names_build_python_and_botocore(
        self, instance: Instance, artifact: Path
    ) -> None:
        done = instance.run([TATTLE, "--version"])
        with zipfile.ZipFile(artifact) as archive:
            build = json.loads(archive.read("environment.json"))["build_id"][:12]
        version = rf"tattle \d+\.\d+\.\d+ of [0-9-]+, build {build}, Python 3\.\d+\.\d+, "
        version += r"botocore 1\.42\.\d+\n"
        assert re.fullmatch(version, done.stdout)

    def test_help_has_the_pam_lines_option_and_checks_statuses(self, instance: Instance) -> None:
        assert "--wait[=SECONDS]" in " ".join(instance.run([TATTLE, "--help"]).stdout.split())
        check = " ".join(instance.run([TATTLE, "check", "--help"]).stdout.split())
        assert "0 all is well, 1 something is wrong, 2 there are only warnings" in check


class TestRecipes:
    def test_without_a_name_it_lists_them_one_a_line(self, instance: Instance) -> None:
        done = instance.run([TATTLE, "recipe"])
        assert (done.returncode, done.stderr) == (0, "")
        names = dict(line.split(None, 1) for line in done.stdout.splitlines())
        assert names == dict(recipe.recipes())
        assert instance.run([TATTLE, "recipe", "pam"]).stdout == recipe.text("pam")

    def test_it_needs_no_proc(self, instance: Instance) -> None:
        """As in a chroot that an image is made in, where nothing is unpacked yet."""
        none = "while umount --lazy /proc 2>/dev/null; do :; done"
        script = f'rm -rf /var/cache/tattle; {none}; exec "$0" recipe pam'
        done = instance.run(["unshare", "--mount", "/bin/sh", "-c", script, TATTLE])
        assert (done.stdout, done.stderr) == (recipe.text("pam"), "")

    def test_there_is_none_of_that_name(self, instance: Instance) -> None:
        done = instance.run([TATTLE, "recipe", "nonsense"])
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr == "tattle: no recipe 'nonsense' → `tattle recipe` lists them\n"

    def test_the_policy_is_for_the_instances_own_bus(self, instance: Instance) -> None:
        instance.imds.set(document=identity_document(region="cn-north-1", accountId="987654321098"))
        own = "arn:aws-cn:events:cn-north-1:987654321098:event-bus"
        other = "arn:aws:events:us-east-1:210987654321:event-bus/security"
        for bus, resource in (("logins", f"{own}/logins"), (other, other), ("", f"{own}/default")):
            instance.write(CONF, f"[tattle]\nevent-bus = {bus}\n" if bus else "")
            done = instance.run([TATTLE, "recipe", "iam-policy.json"])
            assert (done.returncode, done.stderr) == (0, "")
            found = {one["Resource"] for one in json.loads(done.stdout)["Statement"]}
            assert found == {resource}

    def test_where_imds_says_nothing_the_policy_has_to_be_filled_in(
        self, instance: Instance
    ) -> None:
        instance.imds.set(fault="refuse")
        done = instance.run([TATTLE, "recipe", "iam-policy.json"])
        assert done.returncode == 0
        assert "us-east-1:012345678901" in done.stdout
        assert re.fullmatch("tattle: put in your region and account: IMDS at .*\n", done.stderr)


@pytest.mark.parametrize("command", ["recipe pam", "recipe archive.yaml", "--help", "--version"])
def test_output_that_cannot_be_written(command: str, instance: Instance) -> None:
    """More of it than fits into a buffer, or less."""
    done = instance.run(["/bin/sh", "-c", f"{TATTLE} {command} >/dev/full"])
    assert done.returncode == os.EX_IOERR
    assert done.stderr == "tattle: can't write the output: No space left on device\n"
