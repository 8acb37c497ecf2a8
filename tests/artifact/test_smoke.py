"""The smoke test, typed as a user types it: the built artifact as a process, from a shell to the
event that EventBridge has accepted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

import demo
from conftest import Moto, Tattle
from standins.ca import EXPIRED, UNTRUSTED, WRONG_HOST
from standins.eventbridge import EventBridge
from standins.imds import TOKEN_PATH, TOKEN_TTL_HEADER, Imds, identity_document
from standins.instance import EVENTBRIDGE_HOST, TATTLE, Instance
from standins.server import Answer, Asked
from support import ROOT, find_pythons

LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
LOGOUT = {**LOGIN, "PAM_TYPE": "close_session"}
ARN = "arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"
SOURCE_VERSION = re.search(
    r'^__version__ = "(.+)"', (ROOT / "src/tattle/__init__.py").read_text(), re.MULTILINE
)
BY_ANOTHER_ROLE = """\
[default]
role_arn = arn:aws:iam::012345678901:role/another
credential_source = Ec2InstanceMetadata
"""


def sent(done: subprocess.CompletedProcess[str]) -> str:
    """The event's id out of the one line that tells of success."""
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said = re.fullmatch(
        r"sent: session (opened|closed) for .+, event id (\S+), event bus \S+ in \S+\n", done.stdout
    )
    assert said, done.stdout
    return said[2]


def older_pythons() -> dict[str, str]:
    """The interpreters on this machine that tattle refuses: "3.8" → path."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = {}
    for path in [*pyenv.glob("versions/*/bin/python"), *Path("/usr/bin").glob("python[23].?")]:
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.run([path, "-c", probe], capture_output=True, text=True).stdout.strip()
        if version in ("2.7", "3.5", "3.6", "3.7", "3.8"):
            found[version] = str(path)
    return dict(sorted(found.items()))


class OneTokenOnly(Imds):
    """Gives one token, and refuses the next."""

    def answer(self, asked: Asked) -> Answer:
        if asked.path == TOKEN_PATH and self.requests():
            self.set(fault=403, fault_path=TOKEN_PATH)
        return super().answer(asked)


class TestTheEvent:
    @pytest.mark.parametrize(("session", "state"), [(LOGIN, "opened"), (LOGOUT, "closed")])
    def test_a_session_is_published_and_the_id_that_eventbridge_gave_is_printed(
        self, session: dict[str, str], state: str, tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        before = int(time.time())
        event_id = sent(tattle(env=session))
        (entry,) = eventbridge.entries()
        assert entry.event_id == event_id
        assert before <= entry.raw["Time"] <= time.time()
        assert {name: value for name, value in entry.raw.items() if name != "Time"} == {
            "Source": "com.unbounce.tattle",
            "DetailType": "SSH connection event detected",
            "Resources": [ARN],
            "Detail": f'{{"username": "test", "remote_host": "test", "session": "{state}"}}',
        }

    def test_a_session_without_a_remote_host_has_an_empty_one(
        self, tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        sent(tattle(env={**LOGIN, "PAM_RHOST": None}))
        assert eventbridge.details() == [
            {"username": "test", "remote_host": "", "session": "opened"}
        ]

    @pytest.mark.parametrize(
        ("region", "partition"),
        [
            ("eu-central-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
        ],
    )
    def test_it_goes_to_the_instances_region_with_that_regions_partition_in_the_arn(
        self, region: str, partition: str, tattle: Tattle, imds: Imds, eventbridge: EventBridge
    ) -> None:
        imds.set(document=identity_document(region=region))
        eventbridge.set(region=region)  # else the signature's scope would be refused
        sent(tattle(env=LOGIN))
        (entry,) = eventbridge.entries()
        expected = f"arn:{partition}:ec2:{region}:012345678901:instance/i-abc123abc123"
        assert entry.raw["Resources"] == [expected]

    def test_a_dry_run_prints_the_event_as_json_and_sends_nothing(
        self, tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        done = tattle("--dry-run", env=LOGIN)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert eventbridge.connection_count() == 0
        event = json.loads(done.stdout)
        moment = datetime.strptime(event.pop("time"), "%Y-%m-%dT%H:%M:%S%z")
        assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 60
        assert event.pop("id")
        assert event == {
            "version": "0",
            "source": "com.unbounce.tattle",
            "account": "012345678901",
            "region": "us-east-1",
            "resources": [ARN],
            "detail-type": "SSH connection event detected",
            "detail": {"username": "test", "remote_host": "test", "session": "opened"},
        }

    def test_an_event_accepted_in_a_second_try_is_sent(
        self, tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        eventbridge.set(fault=500, fault_times=1)
        sent(tattle(env=LOGIN))
        assert [call.outcome for call in eventbridge.calls()] == ["500", "accepted"]


class TestTheFile:
    @pytest.mark.parametrize("argument", ["--version", "--help"])
    def test_version_and_help_ask_nobody(
        self, argument: str, tattle: Tattle, imds: Imds, eventbridge: EventBridge
    ) -> None:
        done = tattle(argument, python="/usr/bin/python3", env={"PAM_TYPE": None})
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert SOURCE_VERSION
        if argument == "--version":
            told = rf"tattle {SOURCE_VERSION[1]}, build \w+, Python 3\S+, botocore 1\S+\n"
            assert re.fullmatch(told, done.stdout), done.stdout
        else:
            assert "usage: tattle" in done.stdout
            assert "--dry-run" in done.stdout
        assert imds.connection_count() == eventbridge.connection_count() == 0

    @pytest.mark.root
    @pytest.mark.parametrize("argument", ["--version", "--help"])
    def test_version_and_help_need_no_place_to_unpack_to(
        self, argument: str, instance: Instance
    ) -> None:
        for user, cache in (("root", "/var/cache"), ("ubuntu", "/home/ubuntu")):
            shutil.rmtree(instance.path(f"{cache}/tattle"), ignore_errors=True)
            shutil.rmtree(instance.path(f"{cache}/.cache"), ignore_errors=True)
            there = sorted(os.listdir(instance.path(cache)))
            done = instance.run([TATTLE, argument], user=user)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert sorted(os.listdir(instance.path(cache))) == there

    def test_the_one_file_runs_wherever_it_is_copied_to(
        self,
        artifact: Path,
        clean_env: dict[str, str],
        tmp_path: Path,
        imds: Imds,
        eventbridge: EventBridge,
    ) -> None:
        folder = tmp_path / "an empty folder"
        folder.mkdir()
        copy = Path(shutil.copy(artifact, folder / "renamed"))
        (folder / ".complete").touch()  # is there no trap in what else lies there?
        endpoints = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
            "AWS_ENDPOINT_URL_EVENTBRIDGE": eventbridge.url,
        }
        environment = {**clean_env, **endpoints, **LOGIN}
        sent(subprocess.run([copy], cwd=folder, env=environment, capture_output=True, text=True))
        assert len(eventbridge.entries()) == 1
        assert {*os.listdir(folder)} == {"renamed", ".complete"}

    def test_nothing_near_the_file_or_in_the_environment_chooses_what_code_runs(
        self, tattle: Tattle, tmp_path: Path, eventbridge: EventBridge
    ) -> None:
        for name in ("json", "botocore", "tattle", "_bootstrap", "sitecustomize"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('not tattle')")
        sent(tattle(env={**LOGIN, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path))
        assert len(eventbridge.entries()) == 1

    @pytest.mark.root
    def test_any_user_may_run_it_and_unpacks_to_a_cache_of_their_own(
        self, instance: Instance
    ) -> None:
        shutil.rmtree(instance.path("/home/ubuntu/.cache"), ignore_errors=True)
        instance.write("/tmp/ca.pem", instance.ca.pem)
        environment = {**LOGIN, "AWS_CA_BUNDLE": "/tmp/ca.pem"}
        sent(instance.run([TATTLE], user="ubuntu", env=environment))
        assert len(instance.eventbridge.entries()) == 1
        cache = instance.path("/home/ubuntu/.cache/tattle")
        assert cache.stat().st_mode & 0o777 == 0o700


class TestPythons:
    @pytest.mark.parametrize("version", find_pythons())
    def test_the_same_file_passes_under_every_python_from_3_9_on(
        self, version: str, pythons: dict[str, str], tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        for session, state in ((LOGIN, "opened"), (LOGOUT, "closed")):
            sent(tattle(python=pythons[version], env=session))
            assert eventbridge.details()[-1]["session"] == state
        agents = {call.headers["user-agent"] for call in eventbridge.calls()}
        assert all(f"lang/python#{version}." in agent for agent in agents)

    @pytest.mark.parametrize("version", find_pythons())
    def test_a_refusal_reads_the_same_under_every_python(
        self, version: str, pythons: dict[str, str], tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        eventbridge.set(fault="access-denied")
        done = tattle(python=pythons[version], env=LOGIN)
        assert done.returncode == 77
        assert re.fullmatch(r"tattle: EventBridge: AccessDeniedException: .*\n", done.stderr)

    @pytest.mark.parametrize(("version", "python"), older_pythons().items())
    def test_an_older_python_gets_one_line_to_read(
        self, version: str, python: str, artifact: Path, clean_env: dict[str, str]
    ) -> None:
        isolated = [] if version == "2.7" else ["-I"]
        for variables in (LOGIN, {**LOGIN, "PAM_SERVICE": "sshd"}):
            done = subprocess.run(
                [python, *isolated, "-S", artifact],
                env={**clean_env, **variables},
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stdout) == (78, "")
            assert re.fullmatch(r"tattle: needs Python 3\.9 or newer, and .+\n", done.stderr)
            assert version in done.stderr


class TestImds:
    def test_a_token_is_fetched_by_put_and_every_later_request_carries_it(
        self, tattle: Tattle, imds: Imds
    ) -> None:
        sent(tattle(env=LOGIN))
        requests = imds.requests()
        assert requests[0].method == "PUT"
        for request in requests:
            assert request.status == 200  # the stand-in knows each token it gave, and its life
            if request.method == "PUT":
                assert request.path == TOKEN_PATH
                assert 1 <= int(request.headers[TOKEN_TTL_HEADER]) <= 21600
            else:
                assert request.method == "GET"
                assert request.had_token
        paths = {request.path for request in requests if request.method == "GET"}
        assert paths == {
            "/latest/dynamic/instance-identity/document",
            "/latest/meta-data/iam/security-credentials/",
            "/latest/meta-data/iam/security-credentials/tattle",
        }

    @pytest.mark.parametrize("fault", [400, 401, 403, 404, 405, 500, "empty", "close", "hang"])
    def test_version_1_is_never_tried_when_the_token_is_refused(
        self, fault: str | int, tattle: Tattle, imds: Imds, eventbridge: EventBridge
    ) -> None:
        imds.set(fault=fault, fault_path=TOKEN_PATH)
        assert tattle(env=LOGIN).returncode == 69
        assert imds.requests()
        assert {(request.method, request.path) for request in imds.requests()} == {
            ("PUT", TOKEN_PATH)
        }
        assert eventbridge.connection_count() == 0

    @pytest.mark.parametrize("config", ["", BY_ANOTHER_ROLE])
    def test_version_1_is_never_tried_for_credentials_either(
        self,
        config: str,
        tattle: Tattle,
        clean_env: dict[str, str],
        eventbridge: EventBridge,
    ) -> None:
        file = Path(clean_env["AWS_CONFIG_FILE"])
        file.parent.mkdir()
        file.write_text(config)
        with OneTokenOnly() as imds:
            done = tattle(env={**LOGIN, "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url})
        assert done.returncode in (69, 77), done.stderr
        identity, refused = imds.requests()[1:3]
        assert (identity.method, identity.status) == ("GET", 200)
        assert (refused.path, refused.status) == (TOKEN_PATH, 403)
        assert all(request.had_token for request in imds.requests() if request.method == "GET")
        assert eventbridge.connection_count() == 0


@pytest.mark.root
class TestTheRealHostName:
    """Nothing is configured but the test CA in root's ~/.aws/config."""

    def test_a_session_is_published_with_a_signature_that_verifies(
        self, instance: Instance
    ) -> None:
        for session in (LOGIN, LOGOUT):
            sent(instance.run([TATTLE], env=session))
        assert [detail["session"] for detail in instance.eventbridge.details()] == [
            "opened",
            "closed",
        ]
        for call in instance.eventbridge.calls():
            assert (call.host, call.server_name) == (EVENTBRIDGE_HOST, EVENTBRIDGE_HOST)
            assert call.outcome == "accepted"  # the stand-in has verified the signature

    def test_a_signature_by_other_credentials_would_not_have(self, instance: Instance) -> None:
        known = instance.eventbridge.settings.credentials[0]
        instance.eventbridge.set(credentials=[known._replace(secret_access_key="another")])
        done = instance.run([TATTLE], env=LOGIN)
        assert done.returncode == 77
        assert "InvalidSignatureException" in done.stderr

    @pytest.mark.parametrize(
        ("certificate", "reason"),
        [(WRONG_HOST, "doesn't match"), (EXPIRED, "expired"), (UNTRUSTED, "local issuer")],
    )
    def test_a_bad_certificate_is_refused(
        self, certificate: str, reason: str, instance: Instance
    ) -> None:
        instance.eventbridge.set(certificate=certificate)
        done = instance.run([TATTLE], env=LOGIN)
        assert (done.returncode, done.stdout) == (69, "")
        assert re.fullmatch(rf"tattle: EventBridge .*SSL.*{reason}.*\n", done.stderr)
        assert instance.eventbridge.calls() == []

    def test_a_region_newer_than_botocore_is_found_by_the_domain_that_imds_tells(
        self, instance: Instance
    ) -> None:
        host = "events.moon-base-1.amazonaws.com"
        instance.resolve(host)
        instance.imds.set(document=identity_document(region="moon-base-1"))
        sent(instance.run([TATTLE], env=LOGIN))
        (call,) = instance.eventbridge.calls()
        assert call.host == host
        (entry,) = instance.eventbridge.entries()
        assert entry.raw["Resources"] == [ARN.replace("us-east-1", "moon-base-1")]

    def test_only_the_ca_that_is_configured_is_trusted(self, instance: Instance) -> None:
        instance.write("/root/.aws/config", "[default]\n")
        done = instance.run([TATTLE], env=LOGIN)
        assert done.returncode == 69
        assert "certificate" in done.stderr.lower()
        assert instance.eventbridge.calls() == []


def test_a_consumer_receives_the_event_from_the_queue_that_a_rule_feeds(
    tattle: Tattle, moto_server: Moto
) -> None:
    consumer = demo.Consumer(moto_server.events, moto_server.sqs)
    for session, state in ((LOGIN, "opened"), (LOGOUT, "closed")):
        event_id = sent(tattle(env={**session, "AWS_ENDPOINT_URL_EVENTBRIDGE": moto_server.url}))
        event = consumer.receive()
        assert event["id"] == event_id
        assert {name: event[name] for name in ("source", "detail-type", "resources", "detail")} == {
            "source": "com.unbounce.tattle",
            "detail-type": "SSH connection event detected",
            "resources": [ARN],
            "detail": {"username": "test", "remote_host": "test", "session": state},
        }
