"""The smoke test, typed as a user types it: the built artifact as a process, from a shell to the
event that EventBridge has accepted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from conftest import Moto, Tattle
from standins.eventbridge import EventBridge
from standins.imds import TOKEN_PATH, TOKEN_TTL_HEADER, Imds
from standins.server import Answer, Asked
from support import PYENV, ROOT, eventually, find_pythons, is_the_default_event
from tools import demo

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
    found = {}
    for path in [*PYENV.glob("versions/*/bin/python"), *Path("/usr/bin").glob("python[23].?")]:
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
    @pytest.mark.parametrize(
        ("session", "remote_host", "state"),
        [
            (LOGIN, "test", "opened"),
            (LOGOUT, "test", "closed"),
            ({**LOGIN, "PAM_RHOST": None}, "", "opened"),
        ],
    )
    def test_a_session_is_published_and_the_id_that_eventbridge_gave_is_printed(
        self,
        session: dict[str, str | None],
        remote_host: str,
        state: str,
        tattle: Tattle,
        eventbridge: EventBridge,
    ) -> None:
        began = time.time()
        event_id = sent(tattle(env=session))
        (entry,) = eventbridge.entries()
        assert entry.event_id == event_id
        assert is_the_default_event(entry, "test", remote_host, state, began)

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
    def test_version_and_help_ask_nobody(
        self, tattle: Tattle, imds: Imds, eventbridge: EventBridge
    ) -> None:
        version, usage = tattle("--version"), tattle("--help")
        assert (version.returncode, version.stderr) == (0, "")
        assert (usage.returncode, usage.stderr) == (0, "")
        assert SOURCE_VERSION
        told = rf"tattle {SOURCE_VERSION[1]} of [0-9-]+, build \w+, Python 3\S+, botocore 1\S+\n"
        assert re.fullmatch(told, version.stdout), version.stdout
        assert "usage: tattle" in usage.stdout
        assert "--dry-run" in usage.stdout
        assert imds.connection_count() == eventbridge.connection_count() == 0

    def test_it_runs_wherever_it_is_copied_to_and_nothing_near_it_chooses_what_code_runs(
        self,
        artifact: Path,
        clean_env: dict[str, str],
        tmp_path: Path,
        imds: Imds,
        eventbridge: EventBridge,
    ) -> None:
        folder = tmp_path / "a folder"
        folder.mkdir()
        for name in ("json", "botocore", "tattle", "_bootstrap", "sitecustomize"):
            (folder / f"{name}.py").write_text("raise SystemExit('not tattle')")
        copy = Path(shutil.copy(artifact, folder / "renamed"))
        there = {*os.listdir(folder)}
        environment = {
            **clean_env,
            **LOGIN,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url,
            "AWS_ENDPOINT_URL_EVENTBRIDGE": eventbridge.url,
            "PYTHONPATH": str(folder),
        }
        sent(subprocess.run([copy], cwd=folder, env=environment, capture_output=True, text=True))
        assert len(eventbridge.entries()) == 1
        assert {*os.listdir(folder)} == there


class TestPythons:
    @pytest.mark.parametrize("version", find_pythons())
    def test_the_same_file_passes_under_every_python_from_3_9_on(
        self, version: str, pythons: dict[str, str], tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        sent(tattle(python=pythons[version], env=LOGIN))
        (call,) = eventbridge.calls()
        assert f" Python/{version}." in call.headers["user-agent"]
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

    @pytest.mark.parametrize("fault", [403, 404, 405, 500, "empty", "hang"])
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_gets_tired_of_it_can_end_it(
    number: int, artifact: Path, clean_env: dict[str, str], imds: Imds
) -> None:
    imds.set(fault="hang")
    environment = {**clean_env, **LOGIN, "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url}
    # env gives back what the tests' own parent may ignore, as a shell does for what it runs with &.
    command = ["/usr/bin/env", "--default-signal=INT,TERM", str(artifact)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        eventually(imds.connection_count)
        process.send_signal(number)
        assert process.wait(5) == -number
        assert process.stderr
        assert process.stderr.read() == b""


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
