"""The stand-ins are as strict as what they stand for, and fail when told to."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.credentials import InstanceMetadataProvider
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError, SSLError
from botocore.utils import InstanceMetadataFetcher

from standins import ROLE_CREDENTIALS
from standins.ca import EXPIRED, UNTRUSTED, WRONG_HOST, Ca
from standins.eventbridge import EventBridge, Rejection
from standins.imds import Imds, identity_document, role_credentials
from standins.instance import BOOT_ID, HOSTNAME, REMOTE_HOST, STRACE_LOG, Hook, Instance
from support import ROOT, need, need_root

TOKEN = "X-aws-ec2-metadata-token"
TOKEN_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
IDENTITY = "/latest/dynamic/instance-identity/document"


def ask(
    imds: Imds, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(imds.url + path, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=0.5) as response:
            return response.status, response.read().decode("latin-1")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("latin-1")


def ask_for_token(imds: Imds, **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(imds, "/latest/api/token", "PUT", named)


def ask_with_token(imds: Imds, path: str, token: str | None = None) -> tuple[int, str]:
    """With a new token unless one is given."""
    return ask(imds, path, headers={TOKEN: token or ask_for_token(imds, **{TOKEN_TTL: "60"})[1]})


def ask_over(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", IDENTITY)
    connection.getresponse().read()


class TestImds:
    def test_a_get_without_a_token_is_refused(self, imds: Imds) -> None:
        assert ask(imds, IDENTITY)[0] == 401
        assert ask_with_token(imds, IDENTITY, "made-up")[0] == 401
        assert [request.had_token for request in imds.requests()] == [False, True]

    def test_a_get_with_a_token_gets_the_identity_document(self, imds: Imds) -> None:
        status, body = ask_with_token(imds, IDENTITY)
        assert status == 200
        assert json.loads(body) == identity_document()

    def test_a_token_expires(self, imds: Imds) -> None:
        _, token = ask_for_token(imds, **{TOKEN_TTL: "1"})
        assert ask_with_token(imds, IDENTITY, token)[0] == 200
        time.sleep(1.1)
        assert ask_with_token(imds, IDENTITY, token)[0] == 401

    @pytest.mark.parametrize("ttl", ["0", "21601", "-1", "x", ""])
    def test_a_token_lives_from_one_second_to_six_hours(self, imds: Imds, ttl: str) -> None:
        assert ask_for_token(imds, **{TOKEN_TTL: ttl})[0] == 400
        assert ask_for_token(imds)[0] == 400

    def test_a_forwarded_request_gets_no_token(self, imds: Imds) -> None:
        assert ask_for_token(imds, **{TOKEN_TTL: "60"}, X_Forwarded_For="1.2.3.4")[0] == 403

    def test_a_role_and_tags_are_there_only_where_configured(self, imds: Imds) -> None:
        assert ask_with_token(imds, CREDENTIALS) == (
            200,
            "tattle",
        )
        assert ask_with_token(imds, "/latest/meta-data/tags/instance/Name")[0] == 404
        imds.set(role=None, tags={"Name": "bastion"})
        assert ask_with_token(imds, CREDENTIALS)[0] == 404
        assert ask_with_token(imds, "/latest/meta-data/tags/instance/Name") == (200, "bastion")
        assert ask_with_token(imds, "/latest/meta-data/tags/instance/Nome")[0] == 404

    def test_botocore_gets_the_roles_credentials(self, imds: Imds) -> None:
        fetcher = InstanceMetadataFetcher(base_url=imds.url + "/")
        credentials = InstanceMetadataProvider(fetcher).load().get_frozen_credentials()
        assert credentials.token == ROLE_CREDENTIALS.session_token

    def test_faults_of_an_answer(self, imds: Imds) -> None:
        imds.set(fault=500)
        assert ask(imds, IDENTITY)[0] == 500
        imds.set(fault="rubbish", fault_path=IDENTITY)
        assert ask_with_token(imds, IDENTITY)[0] == 200
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(ask_with_token(imds, IDENTITY)[1])
        imds.set(fault=None, document=identity_document(region=None), credentials=b"{")
        assert "region" not in json.loads(ask_with_token(imds, IDENTITY)[1])
        assert ask_with_token(imds, CREDENTIALS + "tattle") == (
            200,
            "{",
        )
        imds.set(credentials=role_credentials(lifetime=-60))
        _, body = ask_with_token(imds, CREDENTIALS + "tattle")
        expiry = json.loads(body)["Expiration"]
        assert expiry < datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def test_it_refuses_and_hangs_and_comes_back(self, imds: Imds) -> None:
        connection = http.client.HTTPConnection(imds.url[len("http://") :], timeout=5)
        ask_over(connection)
        for _ in range(2):
            imds.set(fault="refuse")
            with pytest.raises(urllib.error.URLError, match="refused"):
                ask(imds, IDENTITY)
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                ask_over(connection)
            connection.close()
            imds.set(fault="hang")
            with pytest.raises(OSError, match="timed out"):
                ask(imds, IDENTITY)
            imds.set(fault=None)
            assert ask(imds, IDENTITY)[0] == 401

    def test_it_runs_as_a_process_with_the_same_control(self) -> None:
        script = ROOT / "tests" / "standins" / "imds.py"
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout
            url = one.stdout.readline().strip()
            settings = json.dumps({"fault": 404}).encode()
            urllib.request.urlopen(f"{url}/_control", settings)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{url}{IDENTITY}")
            log = json.load(urllib.request.urlopen(f"{url}/_log"))
            one.terminate()
        assert [request["path"] for request in log["requests"]] == [IDENTITY]


def events_client(eventbridge: EventBridge, **changes: Any) -> Any:
    """boto3's own client with the role's credentials; each call is one attempt."""
    options = {
        "region_name": "us-east-1",
        "endpoint_url": eventbridge.url,
        "aws_access_key_id": ROLE_CREDENTIALS.access_key_id,
        "aws_secret_access_key": ROLE_CREDENTIALS.secret_access_key,
        "aws_session_token": ROLE_CREDENTIALS.session_token,
        "config": Config(retries={"total_max_attempts": 1}, read_timeout=1, connect_timeout=1),
        **changes,
    }
    return boto3.client("events", **options)


def entry(user: str = "ubuntu", **changes: Any) -> dict[str, Any]:
    detail = json.dumps({"username": user})
    return {"Source": "com.example", "DetailType": "a test", "Detail": detail, **changes}


def put(client: Any, *entries: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = client.put_events(Entries=list(entries or [entry()]))
    return result


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(ClientError) as caught:
        yield
    assert caught.value.response["Error"]["Code"] == code


class TestEventBridge:
    def test_botocores_call_is_accepted_and_recorded(self, eventbridge: EventBridge) -> None:
        before = time.monotonic()
        result = put(events_client(eventbridge), entry("ubuntu"), entry("alice", Time=12.0))
        assert result["FailedEntryCount"] == 0
        recorded = eventbridge.wait_for(2)
        assert [one.event_id for one in recorded] == [one["EventId"] for one in result["Entries"]]
        assert eventbridge.details() == [{"username": "ubuntu"}, {"username": "alice"}]
        assert recorded[1].raw["Time"] == 12
        assert before < recorded[0].arrived < time.monotonic()
        (call,) = eventbridge.calls()
        assert (call.outcome, call.entry_count) == ("accepted", 2)
        assert call.headers["content-type"] == "application/x-amz-json-1.1"
        assert eventbridge.most_in_progress() == 1
        with pytest.raises(AssertionError, match="2 of 3"):
            eventbridge.wait_for(3, timeout=0.1)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"aws_secret_access_key": "guessed"}, "InvalidSignatureException"),
            ({"aws_session_token": "guessed"}, "UnrecognizedClientException"),
            ({"aws_access_key_id": "AKIAUNKNOWN"}, "UnrecognizedClientException"),
            ({"region_name": "eu-west-1"}, "InvalidSignatureException"),
        ],
    )
    def test_a_wrong_signature_is_refused(
        self, eventbridge: EventBridge, change: dict[str, str], code: str
    ) -> None:
        with refused(code):
            put(events_client(eventbridge, **change))
        assert not eventbridge.entries()

    @pytest.mark.parametrize("part", ["body", "header", "target"])
    def test_a_tampered_request_is_refused(self, eventbridge: EventBridge, part: str) -> None:
        client = events_client(eventbridge)

        def tamper(request: Any, **_: Any) -> None:
            if part == "body":
                request.body = request.body.replace(b"ubuntu", b"nobody")
            elif part == "header":
                request.headers["X-Amz-Date"] = request.headers["X-Amz-Date"].decode()[:-3] + "00Z"
            else:
                request.headers["X-Amz-Target"] = "AWSEvents.DeleteRule"

        client.meta.events.register("before-send.*.*", tamper)
        with contextlib.ExitStack() as expected:
            # At a minute's start the tampered date is the genuine one.
            code = "UnknownOperationException" if part == "target" else "InvalidSignatureException"
            expected.enter_context(refused(code))
            if part == "header" and time.gmtime().tm_sec in (59, 0):
                time.sleep(2)
            put(client)
        assert not eventbridge.entries()

    def test_an_unsigned_request_is_refused(self, eventbridge: EventBridge) -> None:
        headers = {"X-Amz-Target": "AWSEvents.PutEvents"}
        headers["Content-Type"] = "application/x-amz-json-1.1"
        body = json.dumps({"Entries": [entry()]}).encode()
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(eventbridge.url, body, headers))
        assert b"MissingAuthenticationToken" in caught.value.read()

    def test_a_clock_five_minutes_off_is_refused(self, eventbridge: EventBridge) -> None:
        for skew in (-301, 302):
            eventbridge.set(clock_skew=skew)
            with refused("InvalidSignatureException"):
                put(events_client(eventbridge))
        eventbridge.set(clock_skew=200)
        date = put(events_client(eventbridge))["ResponseMetadata"]["HTTPHeaders"]["date"]
        shown = datetime.datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")
        off = shown.replace(tzinfo=datetime.timezone.utc).timestamp() - time.time()
        assert 190 < off < 210

    def test_too_many_or_too_large_entries_are_refused(self, eventbridge: EventBridge) -> None:
        client = events_client(eventbridge)
        large = entry(Detail=json.dumps({"text": "x" * 128 * 1024}))
        for entries in ([entry()] * 11, [large, large], [entry(Detail="")]):
            with refused("ValidationException"):
                put(client, *entries)

    def test_single_entries_are_rejected(self, eventbridge: EventBridge) -> None:
        result = put(
            events_client(eventbridge),
            entry(Detail="{"),
            entry(Detail="[]"),
            entry(Detail='{"number": NaN}'),
            entry(Detail='{"half": "\\ud83d"}'),
            entry(Source="aws.ec2"),
            entry(DetailType="x" * 129),
            entry(Source=""),
            entry("good"),
        )
        assert [one.get("ErrorCode") for one in result["Entries"]] == [
            *["MalformedDetail"] * 4,
            "NotAuthorizedForSourceException",
            *["InvalidArgument"] * 2,
            None,
        ]
        assert result["FailedEntryCount"] == 7
        assert eventbridge.details() == [{"username": "good"}]

    def test_entries_are_rejected_on_demand(self, eventbridge: EventBridge) -> None:
        eventbridge.set(rejections=[Rejection("alice", "ThrottlingException", times=2)])
        client = events_client(eventbridge)
        codes = [put(client, entry("alice"))["Entries"][0].get("ErrorCode") for _ in range(3)]
        assert codes == ["ThrottlingException", "ThrottlingException", None]

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ("access-denied", "AccessDeniedException"),
            ("throttle", "ThrottlingException"),
            ("expired-token", "ExpiredTokenException"),
            (500, "InternalException"),
            (503, "ServiceUnavailable"),
        ],
    )
    def test_errors_on_demand(self, eventbridge: EventBridge, fault: str | int, code: str) -> None:
        eventbridge.set(fault=fault, fault_times=1)
        with refused(code):
            put(events_client(eventbridge))
        put(events_client(eventbridge))
        assert len(eventbridge.entries()) == 1

    def test_a_share_of_the_calls_fails(self, eventbridge: EventBridge) -> None:
        eventbridge.set(fault="throttle", fault_share=(2, 3))
        client = events_client(eventbridge)
        for _ in range(6):
            with contextlib.suppress(ClientError):
                put(client)
        outcomes = [call.outcome for call in eventbridge.calls()]
        assert outcomes == ["ThrottlingException", "ThrottlingException", "accepted"] * 2

    @pytest.mark.parametrize("tls", [False, True])
    @pytest.mark.parametrize(
        ("fault", "error", "recorded"),
        [
            ("reset", ConnectionClosedError, 0),
            ("reset-after", ConnectionClosedError, 1),
            ("close-after", ConnectionClosedError, 1),
            ("hang-after", ReadTimeoutError, 1),
            ("hang", ReadTimeoutError, 0),
        ],
    )
    def test_connections_break_on_demand(
        self, tmp_path: Path, tls: bool, fault: str, error: type[Exception], recorded: int
    ) -> None:
        ca = Ca()
        with EventBridge(ca=ca if tls else None) as eventbridge:
            client = events_client(eventbridge, verify=str(ca.write(tmp_path / "ca.pem")))
            put(client)
            eventbridge.clear()
            eventbridge.set(fault=fault)
            with pytest.raises(error):
                put(client)
            assert len(eventbridge.entries()) == recorded
            eventbridge.set(fault=None)
            put(client)

    def test_tls_shows_the_certificate_it_is_told_to(self, tmp_path: Path) -> None:
        ca = Ca()
        with EventBridge(ca=ca) as eventbridge:
            options = {
                "verify": str(ca.write(tmp_path / "ca.pem")),
                "endpoint_url": eventbridge.url.replace("127.0.0.1", "localhost"),
            }
            put(events_client(eventbridge, **options))
            assert eventbridge.calls()[0].server_name == "localhost"
            for kind, complaint in {
                EXPIRED: "expired",
                WRONG_HOST: "[Hh]ostname .*match",
                UNTRUSTED: "unable to get local issuer|self.signed",
            }.items():
                eventbridge.set(certificate=kind)
                with pytest.raises(SSLError, match=complaint):
                    put(events_client(eventbridge, **options))

    def test_calls_in_progress_are_counted(self, eventbridge: EventBridge) -> None:
        eventbridge.set(delay=0.3)
        threads = [
            threading.Thread(target=put, args=(events_client(eventbridge),)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert eventbridge.most_in_progress() == 3


def test_a_certificate_passes_openssls_strict_checks() -> None:
    ca = Ca()
    with EventBridge(ca=ca) as eventbridge:
        context = ssl.create_default_context(cadata=ca.pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(eventbridge.url, context=context)


@pytest.fixture(scope="module")
def _module_box() -> Iterator[Instance]:
    need_root(*Instance.TOOLS)
    with Instance(LOGGING_HOOK) as box:
        yield box


@pytest.fixture
def box(_module_box: Instance) -> Instance:
    """An instance whose hook is a script that logs who it is and what it was given."""
    _module_box.reset()
    return _module_box


LOGGING_HOOK = r"""#!/bin/sh
[ "$1" != background ] || sleep 1000 &
line="uid=$(id -u) parent=$PPID $(tr '\0\n' ' ~' </proc/$$/environ)"
printf '%s\n' "$line" >>/tmp/hook
"""


def hook_runs(box: Instance, count: int) -> list[str]:
    """The script's lines, once there are that many: sshd closes a session after its client left."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = box.read("/tmp/hook").splitlines() if box.path("/tmp/hook").exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.01)
    pytest.fail(f"the hook did not run {count} times: {lines}")


class TestInstance:
    def test_a_login_runs_the_hook_at_open_and_close_as_root(self, box: Instance) -> None:
        login = box.ssh("ubuntu", "id -un; echo $SSH_CONNECTION; hostname")
        assert re.fullmatch(
            rf"ubuntu\n{REMOTE_HOST} \d+ 127\.0\.0\.1 22\n{HOSTNAME}\n", login.stdout
        )
        opened, closed = hook_runs(box, 2)
        for line, kind in ((opened, "open_session"), (closed, "close_session")):
            assert line.startswith("uid=0 ")
            items = f"PAM_SERVICE=sshd PAM_USER=ubuntu PAM_TTY=ssh PAM_RHOST={REMOTE_HOST} "
            assert line.endswith(f" {items}PAM_TYPE={kind} ")
            assert "SSH_AUTH_INFO_0=publickey ssh-ed25519 " in line
        assert opened.split()[1] == closed.split()[1]  # the parent
        assert box.syslog.wait_for("session closed for user ubuntu").identifier == "sshd"

    def test_scp_sftp_and_a_terminal_work(self, box: Instance) -> None:
        assert box.scp("alice", "/etc/hosts", "copied").returncode == 0
        assert box.sftp("alice", "rename copied moved\n").returncode == 0
        assert "127.0.0.1" in box.read("/home/alice/moved")
        assert box.ssh("alice", "tty", options=["-tt"]).stdout.startswith("/dev/pts/")
        assert len(hook_runs(box, 6)) == 6

    def test_a_user_may_set_variables_where_debian_lets_them(self, box: Instance) -> None:
        need("user_readenv=1" in box.read("/etc/pam.d/sshd"), "a stock Debian 12 PAM stack")
        box.write("/home/alice/.pam_environment", "PAM_USER=root\n", owner="alice")
        box.ssh("alice", "true")
        assert " PAM_USER=root " in hook_runs(box, 1)[0]
        box.configure_pam(user_readenv=False)
        box.ssh("alice", "true")
        assert " PAM_USER=root " not in hook_runs(box, 3)[2]

    def test_the_pam_lines_arguments_and_control(self, box: Instance) -> None:
        box.configure_pam("background", control="required")
        box.ssh("ubuntu", "true")
        hook_runs(box, 2)
        assert len(box.processes("sleep 1000")) == 2
        box.install("#!/bin/sh\nexit 75\n")
        assert box.ssh("ubuntu", "true").returncode != 0
        box.install(LOGGING_HOOK)

    def test_the_hook_is_run_as_pam_exec_does(self, box: Instance) -> None:
        result = box.hook(
            "close_session",
            user="bob",
            rhost=None,
            ruser="rob",
            before=[("A", "1"), ("PAM_USER", "root"), ("A", b"\xff")],
        )
        assert result.returncode == 0
        items = "PAM_SERVICE=sshd PAM_USER=bob PAM_TTY=ssh PAM_RUSER=rob PAM_TYPE=close_session "
        (line,) = hook_runs(box, 1)
        assert line.endswith(f" A=1 PAM_USER=root A=\udcff {items}")

    def test_hooks_of_a_session_share_their_parent(self, box: Instance) -> None:
        with box.session() as session:
            session.hook("open_session")
            session.run(*[Hook("close_session")] * 3)
        assert len({line.split()[1] for line in hook_runs(box, 4)}) == 1

    def test_the_hook_can_be_traced_and_limited(self, box: Instance) -> None:
        need_root("strace", "prlimit")
        killed = box.hook(strace=["-e", "inject=openat:signal=KILL:when=1"])
        assert killed.returncode == -signal.SIGKILL
        assert "execve(" in box.read(STRACE_LOG)
        limited = box.hook(
            wrapper=["/usr/bin/prlimit", "--nofile=64"],
            path="/bin/sh",
            arguments=["-c", "ulimit -n"],
            stdout=True,
        )
        assert limited.output == b"64\n"

    def test_its_metadata_service_and_eventbridge_are_where_they_are_on_ec2(
        self, box: Instance
    ) -> None:
        code = (
            "import socket, ssl, urllib.request\n"
            "context = ssl.create_default_context(cafile='/root/test-ca.pem')\n"
            "connection = socket.create_connection(('events.us-east-1.amazonaws.com', 443))\n"
            "context.wrap_socket(connection, server_hostname='events.us-east-1.amazonaws.com')\n"
            "urllib.request.urlopen('http://169.254.169.254/')\n"
        )
        done = box.run(["/usr/bin/python3", "-IS", "-c", code])
        assert "HTTP Error 401" in done.stderr
        assert box.eventbridge.connection_count() == 1
        assert [request.status for request in box.imds.requests()] == [401]

    def test_the_machine_is_left_alone(self, box: Instance) -> None:
        folders = ("/etc", "/root", "/home", "/usr/local/bin", "/var/spool", "/var/cache", "/tmp")
        for folder in folders:
            box.write(f"{folder}/tattle-was-here", "")
            assert not Path(folder, "tattle-was-here").exists()
        assert box.run(["touch", "/usr/bin/tattle-was-here"]).returncode != 0
        assert box.run(["env"]).stdout == "".join(
            f"{line}\n"
            for line in (
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C.UTF-8",
                "HOME=/root",
            )
        )
        assert box.run(["hostname"]).stdout == f"{HOSTNAME}\n" != os.uname().nodename

    def test_a_reboot_keeps_the_spool_and_nothing_that_runs(self, box: Instance) -> None:
        box.hook(arguments=["background"])
        for folder in ("/var/spool/tattle", "/var/cache/tattle", "/run/tattle"):
            box.write(f"{folder}/something", "")
        boot_id = box.boot_id()
        assert boot_id not in Path(BOOT_ID).read_text()
        box.reboot()
        assert box.processes() == []
        assert box.spool() == ["something"]
        assert not box.path("/var/cache/tattle").exists()
        assert not box.path("/run/tattle").exists()
        assert box.run(["cat", BOOT_ID]).stdout.strip() == box.boot_id() != boot_id
        assert box.ssh("ubuntu", "echo up").stdout == "up\n"

    def test_a_reset_undoes_what_a_test_did(self, box: Instance) -> None:
        stock = box.read("/etc/pam.d/sshd")
        box.configure_pam("background")
        box.write("/etc/tattle.conf", "[tattle]\n")
        box.imds.set(fault=500)
        box.start_sshd("PermitUserEnvironment yes")
        box.ssh("ubuntu", "true")
        box.reset()
        assert box.read("/etc/pam.d/sshd") == stock
        assert not box.path("/etc/tattle.conf").exists()
        assert box.imds.settings.fault is None
        assert box.processes() == []
        assert "PermitUserEnvironment" not in box.read("/etc/ssh/sshd_config.d/test.conf")
        assert box.log(None) == []
        assert box.ssh("ubuntu", "true").returncode == 0

    def test_orphans_are_reaped_and_their_cpu_time_is_known(self, box: Instance) -> None:
        before = box.orphans_cpu_seconds()
        spin = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
        box.run(["/bin/sh", "-c", f"(sleep 0.1; {spin}) >/dev/null 2>&1 </dev/null &"])
        deadline = time.monotonic() + 20
        while box.processes():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert box.orphans_cpu_seconds() > before

    def test_it_ends_when_the_tests_are_killed(self) -> None:
        need_root(*Instance.TOOLS)
        code = (
            "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
            "from standins.instance import Instance\nbox = Instance().__enter__()\n"
            "print(box.pid, flush=True)\ntime.sleep(60)\n"
        )
        command = [sys.executable, "-c", code, str(ROOT / "tests")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
            assert tests.stdout
            first = Path("/proc", tests.stdout.readline().strip())
            assert first.exists()
            tests.kill()
        deadline = time.monotonic() + 5
        while first.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
