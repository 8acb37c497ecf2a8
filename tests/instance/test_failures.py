"""Whatever goes wrong in a shell: one line that says what, an exit status of sysexits, within ten
seconds. Never a traceback, and no credential even with --debug."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import pytest

from conftest import Tattle
from failures import FAILURES, pattern
from failures import Failure as Row
from standins import ROLE_CREDENTIALS
from standins.eventbridge import EventBridge, Rejection
from standins.imds import (
    CREDENTIALS_PATH,
    IDENTITY_PATH,
    ROLE_NOT_ASSUMABLE,
    TOKEN_HEADER,
    TOKEN_PATH,
    Imds,
    identity_document,
    role_credentials,
)
from standins.instance import EVENTBRIDGE_HOST, SPOOL, SYSTEM_PYTHON, TATTLE, Instance
from support import eventually, need, need_root

PROMISED_SECONDS = 10
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}
ROLE_PATH = f"{CREDENTIALS_PATH}tattle"

Variables = Mapping[str, Union[str, bytes, None]]


@dataclass(frozen=True)
class Failure:
    """A condition, and what is to come of it."""

    name: str
    status: int
    words: str
    """A regular expression that the line matches somewhere."""
    env: Variables = field(default_factory=dict)
    imds: Mapping[str, Any] = field(default_factory=dict)
    eventbridge: Mapping[str, Any] = field(default_factory=dict)


def imds_fault(fault: str | int, path: str, words: str, status: int = 69) -> Failure:
    stage = {
        "/": "all",
        TOKEN_PATH: "token",
        IDENTITY_PATH: "identity",
        CREDENTIALS_PATH: "role's name",
    }
    name = f"IMDS: {fault} for the {stage.get(path, 'credentials')}"
    return Failure(name, status, words, imds={"fault": fault, "fault_path": path})


def imds_says(name: str, status: int, words: str, **settings: Any) -> Failure:
    return Failure(f"IMDS: {name}", status, words, imds=settings)


def eventbridge_fault(fault: str | int, status: int, words: str) -> Failure:
    return Failure(f"EventBridge: {fault}", status, words, eventbridge={"fault": fault})


def rejected(code: str, status: int) -> Failure:
    rule = Rejection("test", code=code, message="as told by the test")
    words = f"EventBridge rejected the event: {code}: as told by the test"
    return Failure(f"rejected: {code}", status, words, eventbridge={"rejections": [rule]})


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in role_credentials().items() if name != key}


USAGE = [
    Failure("no PAM_TYPE", 64, "no PAM_TYPE: .*open_session or close_session", {"PAM_TYPE": None}),
    Failure("an empty PAM_TYPE", 64, "no PAM_TYPE", {"PAM_TYPE": ""}),
    *(
        Failure(kind[:9], 64, f"PAM_TYPE is '{kind[:20]}", {"PAM_TYPE": kind})
        for kind in ("auth", "account", "password", "nonsense", "OPEN_SESSION", "x" * 10_000)
    ),
    Failure("a PAM_TYPE of two lines", 64, "PAM_TYPE is", {"PAM_TYPE": "open\nsession\x1b[31m"}),
    Failure("no PAM_USER", 64, "no PAM_USER", {"PAM_USER": None}),
    Failure("an empty PAM_USER", 64, "no PAM_USER", {"PAM_USER": ""}),
]

NOT_ON_EC2 = [
    imds_fault("refuse", "/", "IMDS at http://127.0.0.1:[0-9]+ can't be reached"),
    imds_fault("hang", "/", "IMDS at http://127.0.0.1:[0-9]+ does not answer"),
    imds_fault(404, "/", "IMDS at .* answers 404"),
    Failure(
        "IMDS is switched off by a variable",
        69,
        "AWS_EC2_METADATA_DISABLED",
        {"AWS_EC2_METADATA_DISABLED": "true"},
    ),
]

IMDS = [
    *(
        imds_fault(fault, TOKEN_PATH, f"IMDS at .* answers {fault} to PUT api/token")
        for fault in (400, 403, 500)
    ),
    *(
        imds_fault(fault, path, f"IMDS at .* {words}")
        for path in (TOKEN_PATH, IDENTITY_PATH)
        for fault, words in (
            ("hang", "does not answer"),
            ("reset", "can't be reached|reset|closed"),
            ("close", "can't be reached|reset|closed"),
        )
    ),
    imds_fault("rubbish", TOKEN_PATH, "IMDS at .* answers 200 to PUT api/token with no token"),
    imds_fault("empty", TOKEN_PATH, "IMDS at .* PUT api/token"),
    *(
        imds_fault(fault, IDENTITY_PATH, f"IMDS at .* answers {fault} to GET .*document")
        for fault in (401, 403, 404, 500)
    ),
    imds_fault("rubbish", IDENTITY_PATH, "no identity document"),
    imds_fault("empty", IDENTITY_PATH, "identity.document"),
    imds_says("a document of another shape", 69, "no identity document", document=b'["us-east-1"]'),
    imds_says("a number for a document", 69, "no identity document", document=b"1"),
    *(
        imds_says(
            f"a document with {key}={missing!r}",
            69,
            f"identity document without {key}",
            document=identity_document(**{key: missing}),
        )
        for key in ("region", "accountId", "instanceId")
        for missing in (None, "")
    ),
    imds_says(
        "a document whose region is a number",
        69,
        "identity document",
        document=identity_document(region=1),
    ),
    imds_says(
        "a document whose region is none",
        69,
        "identity document|region",
        document=identity_document(region="http://elsewhere/?"),
    ),
    imds_says("no role", 77, "no credentials.*404.*security-credentials", role=None),
    *(
        imds_fault(fault, path, f"no credentials: IMDS at .* answers {fault} to GET", 69)
        for path in (CREDENTIALS_PATH, ROLE_PATH)
        for fault in (401, 500)
    ),
    *(
        imds_fault(fault, path, f"no credentials: IMDS at .* ({words})")
        for path in (CREDENTIALS_PATH, ROLE_PATH)
        for fault, words in (
            ("hang", "does not answer"),
            ("reset", "can't be reached|reset|closed"),
        )
    ),
    imds_fault("rubbish", ROLE_PATH, "no credentials: IMDS at .*", 77),
    imds_fault("empty", ROLE_PATH, "no credentials: IMDS at .* answers 200", 69),
    imds_fault("rubbish", CREDENTIALS_PATH, "no credentials: IMDS at .*", 77),
    imds_says(
        "the role can't be assumed",
        77,
        "AssumeRoleUnauthorizedAccess: EC2 cannot assume the role",
        credentials=ROLE_NOT_ASSUMABLE,
    ),
    *(
        imds_says(
            f"credentials without {key}",
            77,
            "no credentials: IMDS at .* role tattle gives malformed ones",
            credentials=without(key),
        )
        for key in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
    ),
    imds_says(
        "credentials of numbers",
        77,
        "credentials",
        credentials=role_credentials(AccessKeyId=1, SecretAccessKey=2, Token=3),
    ),
    imds_says(
        "credentials that expire at no time",
        77,
        "credentials",
        credentials=role_credentials(Expiration="tomorrow"),
    ),
    imds_says("credentials of another shape", 77, "no credentials", credentials=b"[1]"),
    imds_says("credentials cut off", 77, "no credentials", credentials=b'{"Code": "Succ'),
]

MAYBE = "EventBridge did not answer, the event may have arrived"
EVENTBRIDGE = [
    eventbridge_fault("refuse", 69, "EventBridge can't be reached"),
    eventbridge_fault("hang", 69, f"{MAYBE}: .*timeout"),
    eventbridge_fault("close", 69, f"{MAYBE}: .*closed"),
    eventbridge_fault("reset", 69, f"{MAYBE}: .*(reset|closed)"),
    eventbridge_fault("rubbish", 69, f"{MAYBE}: unexpected response"),
    eventbridge_fault("empty", 69, f"{MAYBE}: unexpected response"),
    eventbridge_fault("reset-after", 69, MAYBE),
    eventbridge_fault("access-denied", 77, "AccessDeniedException: .*events:PutEvents"),
    eventbridge_fault("expired-token", 77, "ExpiredTokenException: .*expired"),
    eventbridge_fault("throttle", 75, "ThrottlingException: Rate exceeded"),
    eventbridge_fault(429, 75, "EventBridge: .*"),
    *(eventbridge_fault(status, 75, "EventBridge: .*") for status in (500, 503)),
    eventbridge_fault(403, 77, "EventBridge: .*"),
    eventbridge_fault(404, 78, "EventBridge: .*"),
    eventbridge_fault(413, 65, "EventBridge: .*"),
    Failure(
        "the credentials have expired",
        77,
        "ExpiredTokenException",
        imds={"credentials": role_credentials(lifetime=-3600)},
        eventbridge={"fault": "expired-token"},
    ),
    Failure("the clock is wrong", 77, "Signature.*clock", eventbridge={"clock_skew": 3600.0}),
    rejected("MalformedDetail", 65),
    rejected("InvalidArgument", 65),
    rejected("InternalFailure", 75),
    rejected("ThrottlingException", 75),
    rejected("AccessDeniedException", 77),
    rejected("NotAuthorizedForSourceException", 78),
    Failure(
        "too large",
        65,
        "bytes: EventBridge takes less than 262144",
        {"PAM_USER": "u" * 100_000, "PAM_RHOST": "\x01" * 30_000},
    ),
]

CONFIGURATION = [
    Failure("no such profile", 78, "profile.*nowhere", {"AWS_PROFILE": "nowhere"}),
    Failure(
        "an endpoint that is none", 78, "endpoint", {"AWS_ENDPOINT_URL_EVENTBRIDGE": "nonsense"}
    ),
    Failure(
        "an IMDS endpoint that is none",
        78,
        "(?i)imds|metadata|URL",
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[nonsense"},
    ),
    Failure("a time-out that is none", 78, "soon", {"AWS_METADATA_SERVICE_TIMEOUT": "soon"}),
    Failure(
        "a CA bundle that isn't there",
        78,
        "(?i)/nowhere.pem",
        {
            "AWS_CA_BUNDLE": "/nowhere.pem",
            "AWS_ENDPOINT_URL_EVENTBRIDGE": "https://127.0.0.1:9",
        },
    ),
    Failure(
        "an access key without its secret", 78, "(?i)secret", {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"}
    ),
]


def check(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    """One line on stderr that says it, and that status."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"tattle: [^\n]+\n", done.stderr), done.stderr
    assert done.stderr.removesuffix("\n").isprintable()
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert re.search(words, done.stderr), done.stderr


@pytest.mark.parametrize(
    "failure",
    [*USAGE, *NOT_ON_EC2, *IMDS, *EVENTBRIDGE, *CONFIGURATION],
    ids=lambda failure: failure.name,
)
def test_a_failure_is_told_in_one_line_within_ten_seconds(
    failure: Failure, tattle: Tattle, imds: Imds, eventbridge: EventBridge
) -> None:
    imds.set(**failure.imds)
    eventbridge.set(**failure.eventbridge)
    began = time.monotonic()
    done = tattle(env={**LOGIN, **failure.env})
    assert time.monotonic() - began < PROMISED_SECONDS
    check(done, failure.status, failure.words)
    for secret in ROLE_CREDENTIALS[1:]:
        assert secret not in done.stderr


def test_a_slow_service_is_waited_for(tattle: Tattle, imds: Imds, eventbridge: EventBridge) -> None:
    imds.set(delay=0.5)
    eventbridge.set(delay=2.0)
    done = tattle(env=LOGIN)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(eventbridge.entries()) == 1


def test_a_slow_imds_and_then_an_eventbridge_that_hangs_take_no_longer(
    tattle: Tattle, imds: Imds, eventbridge: EventBridge
) -> None:
    imds.set(delay=0.5)
    eventbridge.set(fault="hang")
    began = time.monotonic()
    check(tattle(env=LOGIN), 69, f"{MAYBE}|no answer .* from EventBridge")
    assert time.monotonic() - began < PROMISED_SECONDS


def test_a_wrong_argument_is_usage_and_asks_nobody(
    tattle: Tattle, imds: Imds, eventbridge: EventBridge
) -> None:
    for arguments in (["--nonsense"], ["nonsense"], ["flush", "--nonsense"]):
        check(tattle(*arguments, env=LOGIN), 64, "nonsense.*--help")
    assert imds.connection_count() == eventbridge.connection_count() == 0


@pytest.mark.root
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.message)
class TestTheTable:
    """What a person meets says the same words everywhere."""

    @pytest.fixture(autouse=True)
    def _provoke(self, failure: Row, instance: Instance) -> Iterator[None]:
        instance.configure_pam(user_readenv=False)
        failure.provoke(instance)
        yield
        failure.undo(instance)

    def test_the_smoke_test_says_it(self, failure: Row, instance: Instance) -> None:
        done = instance.run([TATTLE], env={**LOGIN, **failure.env})
        line = f"tattle: {pattern(failure.message)} → {pattern(unprefixed(failure.advice))}\n"
        assert re.fullmatch(line, done.stderr), done.stderr
        assert (done.returncode, done.stdout) == (failure.status, "")

    def test_check_says_it(self, failure: Row, instance: Instance) -> None:
        if not failure.check:
            pytest.skip("no finding of check's")
        done = instance.run([TATTLE, "check", "--json", *failure.arguments], env=failure.env)
        assert done.returncode == 1
        (found, *_) = [
            (finding["message"], finding["advice"])
            for finding in json.loads(done.stdout)["findings"]
            if finding["id"] == failure.check
        ]
        assert re.fullmatch(pattern(failure.message), found[0]), found
        assert re.fullmatch(pattern(unprefixed(failure.advice)), found[1]), found

    def test_under_pam_the_log_says_it_and_check_as_long_as_events_wait(
        self, failure: Row, instance: Instance
    ) -> None:
        if not failure.logged:
            pytest.skip("not under PAM")
        instance.hook()
        line = instance.syslog.wait_for("events wait in the spool")
        message = pattern(failure.message)
        assert re.fullmatch(f"events wait in the spool: {message}", line.message), line
        eventually((instance.path(SPOOL) / ".fault").exists)
        done = instance.run([TATTLE, "check", "--json"])
        (found,) = [
            (finding["message"], finding["advice"])
            for finding in json.loads(done.stdout)["findings"]
            if finding["id"] == "delivery"
        ]
        assert re.fullmatch(rf"{message} \(\d+ s ago\)", found[0]), found
        assert re.fullmatch(pattern(unprefixed(failure.advice)), found[1]), found


def unprefixed(advice: str) -> str:
    """Root reads it."""
    return advice.replace("sudo ", "")


class TestTheConfigurationFile:
    """Root's /etc/tattle.conf, in an instance of its own."""

    pytestmark = pytest.mark.root

    def test_a_fault_is_told_with_file_and_line(self, instance: Instance) -> None:
        instance.write("/etc/tattle.conf", "[tattle]\nregion = us-east-1\nuse-fips = perhaps\n")
        done = instance.run([TATTLE], env=LOGIN)
        check(done, 78, r"/etc/tattle\.conf, line 3: .*use-fips: expected true or false")
        assert instance.imds.requests() == []

    def test_a_file_that_somebody_else_could_write_is_refused(self, instance: Instance) -> None:
        instance.write("/etc/tattle.conf", "[tattle]\n", mode=0o666)
        done = instance.run([TATTLE], env=LOGIN)
        check(done, 78, r"/etc/tattle\.conf .*somebody else")

    def test_aws_files_that_make_no_sense_are_refused(self, instance: Instance) -> None:
        for text in ("no section", "[default]\nca_bundle = /nowhere.pem\n"):
            instance.write("/root/.aws/config", text, mode=0o600)
            check(instance.run([TATTLE], env=LOGIN), 78, r"/root/\.aws/config|/nowhere\.pem")


class TestTheNetwork:
    pytestmark = pytest.mark.root

    def test_the_host_name_does_not_resolve(self, instance: Instance) -> None:
        instance.write("/etc/hosts", "127.0.0.1 localhost\n")
        done = instance.run([TATTLE], env=LOGIN)
        check(done, 69, r"EventBridge can't be reached: .*events\.us-east-1\.amazonaws\.com")

    def test_a_name_server_is_silent(self, instance: Instance) -> None:
        instance.write("/etc/hosts", "127.0.0.1 localhost\n")
        instance.write("/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 127.0.0.54\n")
        for address in ("127.0.0.53", "127.0.0.54"):
            instance.popen([SYSTEM_PYTHON, "-ISc", SILENT, address])
        began = time.monotonic()
        done = instance.run([TATTLE], env=LOGIN)
        assert time.monotonic() - began < PROMISED_SECONDS
        check(done, 69, r"EventBridge .*events\.us-east-1\.amazonaws\.com")

    def test_packets_to_all_of_eventbridges_addresses_are_dropped(self, instance: Instance) -> None:
        addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        hosts = "".join(f"{address} {EVENTBRIDGE_HOST}\n" for address in addresses)
        instance.write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}")
        pipe = subprocess.PIPE
        dropping = instance.popen([SYSTEM_PYTHON, "-ISc", DROPPING, *addresses], stdout=pipe)
        with dropping:
            assert dropping.stdout
            assert dropping.stdout.readline() == "ready\n"
            began = time.monotonic()
            done = instance.run([TATTLE], env=LOGIN)
            seconds = time.monotonic() - began
            dropping.kill()
        assert seconds < PROMISED_SECONDS
        check(done, 69, "EventBridge")


class TestAnyUser:
    pytestmark = pytest.mark.root

    @pytest.mark.parametrize("user", ["65534", "54321"])
    def test_a_user_without_a_home_is_told_so(
        self, user: str, artifact: Path, clean_env: dict[str, str]
    ) -> None:
        need_root("setpriv")
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        readable = subprocess.run([*become, "test", "-r", str(artifact)]).returncode == 0
        need(readable, "needs a checkout that everybody may read")
        done = subprocess.run(
            [*become, str(artifact)], env={**clean_env, **LOGIN}, capture_output=True, text=True
        )
        check(done, 69, "home|unpack")


class TestDebug:
    @pytest.mark.parametrize("credentials", [None, {"Token": None}, {"Expiration": "tomorrow"}])
    def test_it_adds_detail_but_no_credential_and_no_token(
        self,
        credentials: dict[str, Any] | None,
        tattle: Tattle,
        imds: Imds,
        eventbridge: EventBridge,
    ) -> None:
        if credentials is not None:
            answer = role_credentials(**credentials, Message="something is missing")
            imds.set(credentials=answer)
        done = tattle("--debug", env=LOGIN)
        assert (done.returncode == 0) == (credentials is None)
        assert "/latest/api/token" in done.stderr  # how it went with IMDS …
        assert len(done.stderr.splitlines()) > 5
        tokens = {request.headers.get(TOKEN_HEADER) for request in imds.requests()} - {None}
        assert tokens
        for secret in {*ROLE_CREDENTIALS[1:], *tokens}:
            assert secret
            assert secret not in done.stderr + done.stdout
        assert "Signature=" not in done.stderr

    def test_credentials_that_are_cut_off_are_not_shown_either(
        self, tattle: Tattle, imds: Imds
    ) -> None:
        imds.set(credentials=json.dumps(role_credentials()).encode()[:-10])
        done = tattle("--debug", env=LOGIN)
        assert done.returncode == 77
        for secret in ROLE_CREDENTIALS[1:]:
            assert secret not in done.stderr

    def test_its_last_line_is_the_same_one_line(
        self, tattle: Tattle, eventbridge: EventBridge
    ) -> None:
        eventbridge.set(fault="access-denied")
        done = tattle("--debug", env=LOGIN)
        assert done.returncode == 77
        assert done.stderr.splitlines()[-1].startswith("tattle: EventBridge: AccessDenied")


SILENT = """import socket, sys, time
asked = socket.socket(type=socket.SOCK_DGRAM)
asked.bind((sys.argv[1], 53))
time.sleep(60)
"""

DROPPING = """\
import socket, sys, time
kept = []
for address in sys.argv[1:]:
    listener = socket.socket()
    listener.bind((address, 443))
    listener.listen(0)
    kept.append(listener)
    for _ in range(4):  # with its queue full, it drops what more comes
        kept.append(socket.socket())
        kept[-1].setblocking(False)
        kept[-1].connect_ex((address, 443))
print("ready", flush=True)
time.sleep(60)
"""

VALUES = {
    "bytes that are not UTF-8": (b"a\xff\xfeb\x80", "a\\xff\\xfeb\\x80"),
    "control characters": (bytes(range(1, 32)) + b"\x7f", bytes(range(1, 32)).decode() + "\x7f"),
    "quotes": (b'"}\',{"\\"', '"}\',{"\\"'),
    "newlines": (b"a\nb\r\nc", "a\nb\r\nc"),
    "ten kilobytes": (b"x" * 10_240, "x" * 10_240),
    "other scripts": ("Ünïcødé 用户 🔑".encode(), "Ünïcødé 用户 🔑"),
    "line separators": ("a\u2028b\u2029c\u0085d".encode(), "a\u2028b\u2029c\u0085d"),
    "an equals sign": (b"a=b=c", "a=b=c"),
    "an encoded surrogate": (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_any_value_arrives_as_valid_json(
    kind: str, tattle: Tattle, eventbridge: EventBridge
) -> None:
    value, arrives = VALUES[kind]
    done = tattle(env={**LOGIN, "PAM_USER": value, "PAM_RHOST": b"from " + value})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert done.stdout.removesuffix("\n").isprintable()
    (entry,) = eventbridge.entries()  # which refuses what is no JSON
    assert entry.detail == {
        "username": arrives,
        "remote_host": f"from {arrives}",
        "session": "opened",
    }
