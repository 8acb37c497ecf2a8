"""Whatever IMDS or EventBridge do: one error that says what, with a status of sysexits and without
a credential; and `tattle check` says the same."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
import time
import tracemalloc
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from standins import ROLE_CREDENTIALS
from standins.eventbridge import EventBridge, Rejection
from standins.imds import (
    CREDENTIALS_PATH,
    IDENTITY_PATH,
    ROLE_NOT_ASSUMABLE,
    TOKEN_PATH,
    Imds,
    identity_document,
    role_credentials,
)
from standins.server import Answer, Asked
from tattle.aws import eventbridge as events
from tattle.aws.credentials import aws_session
from tattle.aws.errors import ASSUME, FIX_FILES, meaning
from tattle.aws.eventbridge import Publisher
from tattle.errors import TattleError, Unanswered
from tattle.event.config import Config
from tattle.event.fields import FROM_INSTANCE
from tattle.login.pam import Session
from tattle.shell import check, check_aws
from tattle.shell.finding import Finding

ROLE_PATH = f"{CREDENTIALS_PATH}tattle"
TIMEOUT = 0.3  # seconds; where nothing hangs, an answer takes milliseconds
DROPPED = "can't be reached|reset|closed"
MAYBE = "EventBridge did not answer, the event may have arrived"


class Fault(NamedTuple):
    """What is set, and the error: its status and a regular expression found in it."""

    status: int
    words: str
    imds: Mapping[str, Any] = {}
    eventbridge: Mapping[str, Any] = {}
    env: Mapping[str, str] = {}


def imds(fault: str | int, path: str, words: str, status: int = 69) -> Fault:
    return Fault(status, words, {"fault": fault, "fault_path": path})


def document(words: str, **changes: Any) -> Fault:
    return Fault(69, words, {"document": identity_document(**changes)})


def credentials(words: str, given: object) -> Fault:
    return Fault(77, f"no credentials: IMDS at .*{words}", {"credentials": given})


def malformed(**changes: Any) -> Fault:
    return credentials(
        "gives malformed credentials for the role tattle", role_credentials(**changes)
    )


def eventbridge(fault: str | int, status: int, words: str) -> Fault:
    return Fault(status, words, eventbridge={"fault": fault})


def rejected(code: str, status: int) -> Fault:
    words = f"EventBridge rejected the event: {code}: as told by the test"
    rule = Rejection("", code=code, message="as told by the test")
    return Fault(status, words, eventbridge={"rejections": [rule]})


def variables(words: str, **env: str) -> Fault:
    return Fault(78, words, env=env)


FAULTS = [
    imds("refuse", "/", "IMDS at http://127.0.0.1:[0-9]+/? can't be reached"),
    *(
        imds(fault, TOKEN_PATH, f"IMDS at .* answers {fault} to PUT api/token")
        for fault in (400, 403, 500)
    ),
    *(imds(fault, TOKEN_PATH, DROPPED) for fault in ("reset", "close")),
    imds("rubbish", TOKEN_PATH, "IMDS at .* answers 200 to PUT api/token with no token"),
    imds("empty", TOKEN_PATH, "IMDS at .* PUT api/token"),
    *(
        imds(fault, IDENTITY_PATH, f"IMDS at .* answers {fault} to GET .*document")
        for fault in (401, 403, 404, 500)
    ),
    imds("hang", IDENTITY_PATH, "IMDS at .* does not answer"),
    *(imds(fault, IDENTITY_PATH, DROPPED) for fault in ("reset", "close")),
    imds("rubbish", IDENTITY_PATH, "with no identity document"),
    imds("empty", IDENTITY_PATH, "identity.document"),
    *(Fault(69, "no identity document", {"document": of}) for of in (b'["us-east-1"]', b"1")),
    *(
        imds("endless", path, "IMDS at .* answers (GET|PUT) .* without end")
        for path in (TOKEN_PATH, IDENTITY_PATH)
    ),
    imds("endless", ROLE_PATH, "no credentials: IMDS at .* answers GET .* without end"),
    imds("bomb", IDENTITY_PATH, "no identity document"),
    *(
        imds(429, path, f"{begins}IMDS at .* answers 429 to .*: asked too often", 75)
        for path, begins in (
            *((TOKEN_PATH, ""), (IDENTITY_PATH, "")),
            *((CREDENTIALS_PATH, "no credentials: "), (ROLE_PATH, "no credentials: ")),
        )
    ),
    *(
        document(f"identity document without a valid {key}", **{key: missing})
        for key in ("region", "accountId", "instanceId")
        for missing in (None, "")
    ),
    document("identity document without a valid region", region=1),
    document("identity document without a valid region", region="http://elsewhere/?"),
    document("identity document without a valid region", region="us-" + "a" * 300),
    *(
        document("identity document without a valid instanceId", instanceId=f"i-{more}")
        for more in ("a" * 300_000, "a" * 2_100, "mine", "²" * 8)
    ),
    Fault(77, "no credentials: .* answers 404 .*security-credentials", {"role": None}),
    *(
        imds(fault, path, f"no credentials: IMDS at .* answers {fault} to GET")
        for path in (CREDENTIALS_PATH, ROLE_PATH)
        for fault in (401, 500)
    ),
    imds("hang", ROLE_PATH, "no credentials: IMDS at .* does not answer"),
    *(
        imds("reset", path, f"no credentials: IMDS at .*({DROPPED})")
        for path in (CREDENTIALS_PATH, ROLE_PATH)
    ),
    imds("rubbish", ROLE_PATH, "no credentials: IMDS at .*", 77),
    imds("empty", ROLE_PATH, "no credentials: IMDS at .* malformed credentials", 77),
    imds("rubbish", CREDENTIALS_PATH, "no credentials: IMDS at .*", 77),
    credentials("AssumeRoleUnauthorizedAccess: EC2 cannot assume", ROLE_NOT_ASSUMABLE),
    *(malformed(**{key: None}) for key in ("AccessKeyId", "SecretAccessKey", "Token")),
    malformed(AccessKeyId=1),
    malformed(Expiration=None),
    malformed(Expiration="tomorrow"),
    credentials("", b"[1]"),
    credentials("", json.dumps(role_credentials()).encode()[:-10]),
    eventbridge("refuse", 69, "EventBridge can't be reached"),
    eventbridge("hang", 69, f"{MAYBE}: .*timeout"),
    eventbridge("close", 69, f"{MAYBE}: .*closed"),
    eventbridge("reset", 69, f"{MAYBE}: .*(reset|closed)"),
    eventbridge("rubbish", 69, f"{MAYBE}: unexpected response"),
    eventbridge("endless", 69, MAYBE),
    eventbridge("bomb", 69, MAYBE),
    eventbridge("empty", 69, f"{MAYBE}: unexpected response"),
    eventbridge("reset-after", 69, MAYBE),
    eventbridge("access-denied", 77, "EventBridge: AccessDeniedException: .*events:PutEvents"),
    eventbridge("expired-token", 77, "EventBridge: ExpiredTokenException: .*expired"),
    eventbridge("throttle", 75, "EventBridge: ThrottlingException: Rate exceeded"),
    *(
        eventbridge(http, status, "EventBridge: .*")
        for http, status in {429: 75, 500: 75, 503: 75, 403: 77, 404: 78, 413: 69}.items()
    ),
    Fault(77, "InvalidSignatureException: Signature expired", eventbridge={"clock_skew": 3600.0}),
    rejected("MalformedDetail", 65),
    rejected("InvalidArgument", 65),
    rejected("InternalFailure", 75),
    rejected("ThrottlingException", 75),
    rejected("AccessDeniedException", 77),
    rejected("NotAuthorizedForSourceException", 78),
    variables("profile.*nowhere", AWS_PROFILE="nowhere"),
    variables("endpoint", AWS_ENDPOINT_URL_EVENTBRIDGE="nonsense"),
    variables("(?i)imds|metadata|URL", AWS_EC2_METADATA_SERVICE_ENDPOINT="http://[nonsense"),
    variables("soon", AWS_METADATA_SERVICE_TIMEOUT="soon"),
    variables("/nowhere.pem", AWS_CA_BUNDLE="/nowhere.pem"),
    variables("(?i)secret", AWS_ACCESS_KEY_ID="AKIDEXAMPLE"),
]


def name(fault: Fault) -> str:
    settings = {**fault.imds, **fault.eventbridge}
    parts = [settings.get("fault"), settings.get("fault_path"), *fault.env, fault.words]
    return " ".join(str(part) for part in parts if part)


@pytest.fixture(autouse=True)
def _impatient(on_ec2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SECOND_TRY_SECONDS", 0)
    monkeypatch.setattr(check_aws, "INTERACTIVE_TIMEOUT", TIMEOUT)


def send(config: Config | None = None) -> None:
    publisher = Publisher(config or Config(), TIMEOUT)
    session = Session(
        {"PAM_TYPE": "open_session", "PAM_USER": "test"}, {"TATTLE_TIME": str(time.time_ns())}
    )
    publisher.send(publisher.entry(session, lambda _: False))


def probed(probe: check.Probe, *ids: str) -> list[Finding]:
    """What a probe finds, or fails over."""
    found: list[Finding] = []
    check.run(probe, ids, found)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_fault_is_one_error_and_check_finds_it(
    fault: Fault, imds: Imds, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    imds.set(**fault.imds)
    eventbridge.set(**fault.eventbridge)
    for variable, value in fault.env.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(TattleError, match=fault.words) as caught:
        send()
    error = caught.value
    assert error.status == fault.status
    for secret in ROLE_CREDENTIALS[1:]:
        assert secret not in str(error) + error.advice
    if str(error).startswith("no credentials"):
        (found,) = probed(check_aws.role, "role")
    else:
        (found,) = probed(lambda: check_aws.send(Config()), "send")
    assert (found.severity, found.advice) == ("error", error.advice)
    assert undated(found.message) == undated(str(error))


@pytest.mark.parametrize(
    ("fault", "path", "helps"),
    [
        *((fault, path, True) for fault in (500, "reset") for path in (TOKEN_PATH, IDENTITY_PATH)),
        ("hang", IDENTITY_PATH, True),
        ("hang", TOKEN_PATH, False),  # so it is where packets may not be forwarded
        (404, IDENTITY_PATH, False),
    ],
)
def test_imds_is_asked_a_second_time_where_that_can_help(
    fault: str | int, path: str, helps: bool, imds: Imds, monkeypatch: pytest.MonkeyPatch
) -> None:
    imds.set(fault=fault, fault_path=path)
    answer = imds.answer

    def answer_better_next_time(asked: Asked) -> Answer:
        try:
            return answer(asked)
        finally:
            if asked.path == path:
                imds.set(fault=None)

    monkeypatch.setattr(imds, "answer", answer_better_next_time)
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "2")
    with nullcontext() if helps else pytest.raises(TattleError):
        aws_session()[1].identity()
    assert [asked.path for asked in imds.requests()].count(path) == 1 + helps


def test_a_token_is_used_until_it_has_expired_and_then_replaced(
    imds: Imds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "10")
    _, client = aws_session()
    assert client.identity() == client.identity()
    imds._tokens.clear()
    with pytest.raises(TattleError, match="answers 401"):
        client.identity()
    assert client.identity()
    assert [asked.path for asked in imds.requests()].count(TOKEN_PATH) == 2


@pytest.mark.parametrize("entries", [[], [{}], [{"EventId": "1"}] * 2, [None], None])
def test_an_answer_that_does_not_say_what_became_of_an_event_is_none(
    entries: object, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(200, json.dumps({"Entries": entries}).encode(), "application/x-amz-json-1.1")
    monkeypatch.setattr(eventbridge, "answer", lambda _: answer)
    with pytest.raises(Unanswered, match=f"^{MAYBE}: unexpected response"):
        send()


@pytest.mark.parametrize("fault", ["endless", "bomb"])
@pytest.mark.parametrize("path", [IDENTITY_PATH, ROLE_PATH, None])
def test_what_is_answered_is_not_kept_whatever_its_size(
    fault: str, path: str | None, imds: Imds, eventbridge: EventBridge
) -> None:
    if path:
        imds.set(fault=fault, fault_path=path)
    else:
        eventbridge.set(fault=fault)
    tracemalloc.start()
    with pytest.raises(TattleError):
        send()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 1024**2


def test_fields_and_tags_that_look_like_none_of_ec2s_are_left_out(imds: Imds) -> None:
    imds.set(
        document=identity_document(imageId="x" * 1000, privateIp=["10.0.0.5"]),
        tags={"Name": "x" * 257, "Other": "x" * 256},
    )
    publisher = Publisher(Config(), TIMEOUT)
    assert publisher.document.keys() & {*FROM_INSTANCE.values()} == {
        "availabilityZone",
        "instanceType",
    }
    assert (publisher.tag("Name"), publisher.tag("Other")) == (None, "x" * 256)


def test_only_eventbridges_own_word_makes_a_request_too_large() -> None:
    assert [meaning(code, 413)[0] for code in ("RequestEntityTooLarge", "413")] == [65, 69]


def undated(text: str) -> str:
    return re.sub("[0-9]{8}T[0-9]{6}Z", "", text)


def test_an_identity_that_is_not_to_be_had_is_found_as_such(imds: Imds) -> None:
    (found,) = check_aws.identity(Config())
    assert found.severity == "ok"
    imds.set(document=identity_document(region=None))
    (found,) = probed(lambda: check_aws.identity(Config()), "identity")
    assert (found.id, found.severity) == ("identity", "error")
    assert "without a valid region" in found.message
    (found,) = check_aws.identity(Config(resource="rack 7"))  # not on EC2
    assert (found.severity, found.message) == ("ok", "rack 7")


def test_credentials_that_have_expired_are_found(imds: Imds) -> None:
    (found,) = check_aws.role()
    assert (found.severity, found.advice) == ("ok", "")
    assert "valid for 6.0 h" in found.message
    imds.set(credentials=role_credentials(lifetime=-3600))
    (found,) = check_aws.role()
    assert found.severity == "error"
    assert "expired 60 min ago" in found.message
    assert "clock" in found.advice
    assert "instance profile" in found.advice


@pytest.mark.parametrize(
    ("skew", "severity", "found"),
    [
        (0, "ok", "[01] s (ahead of|behind) EventBridge's"),
        (600, "error", "(599|600|601) s behind EventBridge's"),
        (-600, "error", "(599|600|601) s ahead of EventBridge's"),
    ],
)
def test_a_clock_that_is_wrong_is_found(
    skew: int, severity: str, found: str, eventbridge: EventBridge
) -> None:
    eventbridge.set(clock_skew=skew)
    _, _, clock = check_aws.endpoint(Config())
    assert (clock.id, clock.severity) == ("clock", severity)
    assert re.fullmatch(found, clock.message)
    assert clock.advice == ("set the clock: sudo chronyc makestep" if skew else "")


@pytest.mark.parametrize(
    ("fault", "proxy", "lookup", "found", "advice"),
    [
        ("hang", None, "ok", "timeout|timed out", "security group"),
        ("refuse", None, "ok", "Could not connect", "security group"),
        (None, "http://127.0.0.1:9", "skipped", "proxy", "`proxy`"),
    ],
)
def test_an_endpoint_that_is_not_reached_is_found(
    fault: str | None,
    proxy: str | None,
    lookup: str,
    found: str,
    advice: str,
    eventbridge: EventBridge,
) -> None:
    eventbridge.set(fault=fault)
    resolves, answers = probed(
        lambda: check_aws.endpoint(Config(proxy=proxy)), "name", "endpoint", "clock"
    )
    assert (resolves.id, resolves.severity) == ("name", lookup)
    assert (answers.id, answers.severity) == ("endpoint", "error")
    assert re.search(found, answers.message)
    assert advice in answers.advice


CENTRAL = "arn:aws:events:us-east-1:222222222222:event-bus/central"


@pytest.mark.parametrize(
    ("bus", "settings", "severity", "words"),
    [
        ("audit", {}, "ok", "audit in us-east-1"),
        (CENTRAL, {"shared_buses": [CENTRAL]}, "ok", CENTRAL),
        ("audit", {"undescribed_buses": ["audit"]}, "warning", "can't be sure.*DescribeEventBus"),
        (CENTRAL, {}, "warning", "can't be sure.*no resource-based policy"),
        (CENTRAL.replace("us-", "eu-"), {}, "warning", "Cross-region"),
        *(
            ("audit", {"look_up_fault": fault}, "warning", "can't be sure")
            for fault in ("throttle", "hang", "reset", "rubbish", "empty", 404, 500)
        ),
    ],
)
def test_a_bus_that_exists_or_can_not_be_looked_up_gets_its_events(
    bus: str,
    settings: dict[str, Any],
    severity: str,
    words: str,
    eventbridge: EventBridge,
) -> None:
    eventbridge.set(**settings)
    send(Config(event_bus=bus))
    assert [entry.raw["EventBusName"] for entry in eventbridge.entries()] == [bus]
    (found,) = check_aws.buses(Config(event_bus=bus))
    assert (found.id, found.severity) == ("bus", severity)
    assert re.search(words, found.message)
    assert bool(found.advice) == (severity == "warning")


def test_nothing_is_sent_to_a_bus_that_does_not_exist(eventbridge: EventBridge) -> None:
    eventbridge.set(missing_buses=["secrity"])
    config = Config(services={"su": Config(event_bus="secrity")})
    default, missing = check_aws.buses(config)
    assert (default.severity, missing.severity) == ("ok", "error")
    with pytest.raises(TattleError, match="Event bus secrity does not exist") as caught:
        send(Config(event_bus="secrity"))
    assert (str(caught.value), caught.value.advice) == (missing.message, missing.advice)
    assert caught.value.status == 78
    assert not eventbridge.calls()
    send(config)
    assert len(eventbridge.entries()) == 1


def test_a_bus_is_looked_up_once_but_again_after_throttling(eventbridge: EventBridge) -> None:
    publisher = Publisher(Config(event_bus="audit"), TIMEOUT)
    eventbridge.set(look_up_fault="throttle")
    for looked_up in (1, 2):
        assert publisher.verify_bus("audit")
        assert len(eventbridge.looked_up()) == looked_up
    eventbridge.set(look_up_fault=None)
    for bus in ("", "default", "audit", "audit"):
        assert publisher.verify_bus(bus) is None
    assert eventbridge.looked_up() == ["audit"] * 3


def test_without_a_role_there_is_no_finding_on_buses(imds: Imds) -> None:
    imds.set(role=None)
    (found,) = check_aws.buses(Config(event_bus="audit"))
    assert (found.id, found.severity) == ("bus", "skipped")


def test_imds_is_asked_directly_whatever_proxy_a_shell_has_set(
    imds: Imds, eventbridge: EventBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(TattleError, match=r"EventBridge can't be reached: .*proxy"):
        send()
    assert ROLE_PATH in [request.path for request in imds.requests()]
    monkeypatch.setenv("no_proxy", "*")
    send()
    assert os.environ["no_proxy"] == "*"


class Sts(http.server.BaseHTTPRequestHandler):
    """Refuses everything, as STS does: https://docs.aws.amazon.com/STS/latest/APIReference/"""

    def do_POST(self) -> None:
        body = (
            b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
            b"<Message>not authorized to perform: sts:AssumeRole</Message></Error></ErrorResponse>"
        )
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_fault_of_sts_is_not_called_eventbridges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(
        "[profile other]\nrole_arn = arn:aws:iam::012345678901:role/other\n"
        "credential_source = Ec2InstanceMetadata\nregion = us-east-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sts) as sts:
        threading.Thread(target=sts.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{sts.server_port}")
        with pytest.raises(TattleError, match=r"^STS: AccessDenied: not authorized") as denied:
            send()
        assert (denied.value.status, denied.value.advice) == (77, ASSUME)
        sts.shutdown()
    with pytest.raises(TattleError, match=r"^STS can't be reached: .*Could not connect") as away:
        send()
    assert away.value.status == 69


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("credential_process = echo", "Expecting value"),
        ("credential_process = /nowhere/program", "No such file"),
        ("web_identity_token_file = /nowhere/token", "No such file"),
    ],
)
def test_a_profiles_own_source_of_credentials_is_named(
    setting: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = "role_arn = arn:aws:iam::012345678901:role/x\n" if "token" in setting else ""
    (tmp_path / "config").write_text(f"[default]\n{role}{setting}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    source = setting.split(maxsplit=1)[0]
    with pytest.raises(TattleError, match=rf"^no credentials: .* {source}: .*{reason}") as caught:
        send()
    assert (caught.value.status, caught.value.advice) == (69, FIX_FILES)


def test_a_tag_may_be_empty(imds: Imds) -> None:
    imds.set(tags={"Name": ""})
    publisher = Publisher(Config(), TIMEOUT)
    assert (publisher.tag("Name"), publisher.tag("Other")) == ("", None)
