"""The stand-ins refuse what IMDS and EventBridge refuse, so that what passes here passes there."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from standins import ROLE_CREDENTIALS
from standins.eventbridge import ACCOUNT, EventBridge
from standins.imds import (
    CREDENTIALS_PATH,
    IDENTITY_PATH,
    TAGS_PATH,
    TOKEN_HEADER,
    TOKEN_PATH,
    TOKEN_TTL_HEADER,
    Imds,
)


def ask(imds: Imds, method: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and body. Headers are named with `_` for `-`."""
    connection = http.client.HTTPConnection(imds.url[len("http://") :], timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    response = connection.getresponse()
    return response.status, response.read().decode()


class TestImds:
    @pytest.mark.parametrize(
        ("status", "method", "headers"),
        [
            (200, "PUT", {TOKEN_TTL_HEADER: "21600"}),
            (400, "PUT", {}),
            *((400, "PUT", {TOKEN_TTL_HEADER: ttl}) for ttl in ("0", "21601", "-1", "x", "")),
            (403, "PUT", {TOKEN_TTL_HEADER: "60", "X-Forwarded-For": "1.2.3.4"}),
            (405, "GET", {TOKEN_TTL_HEADER: "60"}),
        ],
    )
    def test_a_token_is_asked_for_by_put_and_lives_from_a_second_to_six_hours(
        self, imds: Imds, status: int, method: str, headers: dict[str, str]
    ) -> None:
        assert ask(imds, method, TOKEN_PATH, **headers)[0] == status

    def test_nothing_is_answered_without_a_token_that_is_valid_still(self, imds: Imds) -> None:
        _, token = ask(imds, "PUT", TOKEN_PATH, **{TOKEN_TTL_HEADER: "1"})
        deadline = time.monotonic() + 1
        for path in (IDENTITY_PATH, CREDENTIALS_PATH, f"{CREDENTIALS_PATH}tattle"):
            assert ask(imds, "GET", path)[0] == 401
            assert ask(imds, "GET", path, **{TOKEN_HEADER: "made-up"})[0] == 401
        assert [request.had_token for request in imds.requests()[1:3]] == [False, True]
        time.sleep(max(0.0, deadline - time.monotonic()) + 0.1)
        assert ask(imds, "GET", IDENTITY_PATH, **{TOKEN_HEADER: token})[0] == 401

    def test_a_role_and_tags_are_there_only_where_configured(self, imds: Imds) -> None:
        _, token = ask(imds, "PUT", TOKEN_PATH, **{TOKEN_TTL_HEADER: "60"})
        for settings, role, tag in (
            ({}, 200, 404),
            ({"role": None, "tags": {"Name": "bastion"}}, 404, 200),
            ({"tags": {"Nome": "bastion"}}, 404, 404),
        ):
            imds.set(**settings)
            assert ask(imds, "GET", CREDENTIALS_PATH, **{TOKEN_HEADER: token})[0] == role
            assert ask(imds, "GET", f"{TAGS_PATH}Name", **{TOKEN_HEADER: token})[0] == tag


def client(eventbridge: EventBridge, **changes: Any) -> Any:
    """boto3's own client with the role's credentials; each call is one attempt."""
    options = {
        "region_name": "us-east-1",
        "endpoint_url": eventbridge.url,
        "aws_access_key_id": ROLE_CREDENTIALS.access_key_id,
        "aws_secret_access_key": ROLE_CREDENTIALS.secret_access_key,
        "aws_session_token": ROLE_CREDENTIALS.session_token,
        "config": Config(retries={"total_max_attempts": 1}, read_timeout=2, connect_timeout=2),
        **changes,
    }
    return boto3.client("events", **options)


def entry(user: str = "ubuntu", **changes: Any) -> dict[str, Any]:
    detail = json.dumps({"username": user})
    return {"Source": "com.example", "DetailType": "a test", "Detail": detail, **changes}


def refusal(client: Any, *entries: dict[str, Any]) -> str:
    """The code of the error that the call is refused with."""
    with pytest.raises(ClientError) as caught:
        client.put_events(Entries=list(entries or [entry()]))
    return str(caught.value.response["Error"]["Code"])


def set_header(name: str, value: str) -> Callable[[AWSPreparedRequest], None]:
    def tamper(request: AWSPreparedRequest) -> None:
        del request.headers[name]
        if value:
            request.headers[name] = value

    return tamper


def change_body(request: AWSPreparedRequest) -> None:
    request.body = request.body.replace(b"ubuntu", b"nobody")


class TestEventBridge:
    def test_botocores_call_is_accepted_and_recorded(self, eventbridge: EventBridge) -> None:
        entries = [entry("ubuntu"), entry("alice", Time=12.0)]
        result = client(eventbridge).put_events(Entries=entries)
        assert result["FailedEntryCount"] == 0
        recorded = eventbridge.wait_for(2)
        assert [one.event_id for one in recorded] == [one["EventId"] for one in result["Entries"]]
        assert eventbridge.details() == [{"username": "ubuntu"}, {"username": "alice"}]
        assert recorded[1].raw["Time"] == 12
        (call,) = eventbridge.calls()
        assert (call.outcome, call.entry_count) == ("accepted", 2)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"aws_secret_access_key": "guessed"}, "InvalidSignatureException"),
            ({"aws_session_token": "guessed"}, "UnrecognizedClientException"),
            ({"aws_access_key_id": "AKIAUNKNOWN"}, "UnrecognizedClientException"),
            ({"region_name": "eu-west-1"}, "InvalidSignatureException"),
        ],
    )
    def test_other_credentials_and_regions_are_refused(
        self, eventbridge: EventBridge, change: dict[str, str], code: str
    ) -> None:
        assert refusal(client(eventbridge, **change)) == code
        assert not eventbridge.entries()

    @pytest.mark.parametrize(
        ("tamper", "code"),
        [
            (change_body, "InvalidSignatureException"),
            (set_header("X-Amz-Date", "20260102T030405Z"), "InvalidSignatureException"),
            (set_header("X-Amz-Target", "AWSEvents.DeleteRule"), "UnknownOperationException"),
            (set_header("Content-Type", "application/json"), "UnknownOperationException"),
            (set_header("Authorization", ""), "MissingAuthenticationTokenException"),
            (set_header("Authorization", "Bearer of news"), "IncompleteSignatureException"),
        ],
    )
    def test_a_request_that_was_tampered_with_is_refused(
        self, eventbridge: EventBridge, tamper: Callable[[AWSPreparedRequest], None], code: str
    ) -> None:
        tampered = client(eventbridge)
        tampered.meta.events.register("before-send.*.*", lambda request, **_: tamper(request))
        assert refusal(tampered) == code
        assert not eventbridge.entries()

    @pytest.mark.parametrize("skew", [-400, 400])
    def test_a_clock_five_minutes_off_is_refused(
        self, eventbridge: EventBridge, skew: float
    ) -> None:
        eventbridge.set(clock_skew=skew / 2)
        client(eventbridge).put_events(Entries=[entry()])
        eventbridge.set(clock_skew=skew)
        assert refusal(client(eventbridge)) == "InvalidSignatureException"

    @pytest.mark.parametrize(
        "entries",
        [[entry()] * 11, [entry(Detail=json.dumps("x" * 128 * 1024))] * 2, [entry(Detail="")]],
        ids=["too many", "too large", "none whole"],
    )
    def test_a_call_of_too_much_or_nothing_is_refused(
        self, eventbridge: EventBridge, entries: list[dict[str, Any]]
    ) -> None:
        assert refusal(client(eventbridge), *entries) == "ValidationException"

    def test_a_bus_that_does_not_exist_takes_events_and_only_describing_it_tells(
        self, eventbridge: EventBridge
    ) -> None:
        eventbridge.set(missing_buses=["gone"])
        entries = [entry("lost", EventBusName="gone"), entry("kept", EventBusName="there")]
        result = client(eventbridge).put_events(Entries=entries)
        assert (result["FailedEntryCount"], len(result["Entries"])) == (0, 2)
        assert eventbridge.details() == [{"username": "kept"}]
        own = f"arn:aws:events:us-east-1:{ACCOUNT}:event-bus/there"
        assert client(eventbridge).describe_event_bus(Name="there")["Arn"] == own
        for bus, code in (
            ("gone", "ResourceNotFoundException"),
            (own.replace(ACCOUNT, "2" * 12), "AccessDeniedException"),
            (own.replace("us-east-1", "eu-west-1"), "ValidationException"),
        ):
            with pytest.raises(ClientError, match=code):
                client(eventbridge).describe_event_bus(Name=bus)
        assert (len(eventbridge.calls()), len(eventbridge.looked_up())) == (1, 4)

    def test_single_entries_are_rejected(self, eventbridge: EventBridge) -> None:
        expected = [
            (entry(Detail="{"), "MalformedDetail"),
            (entry(Detail="[]"), "MalformedDetail"),
            (entry(Detail='{"number": NaN}'), "MalformedDetail"),
            (entry(Detail='{"half": "\\ud83d"}'), "MalformedDetail"),
            (entry(Source="aws.ec2"), "NotAuthorizedForSourceException"),
            (entry(DetailType="x" * 129), "InvalidArgument"),
            (entry(Source=""), "InvalidArgument"),
            (entry("good"), None),
        ]
        result = client(eventbridge).put_events(Entries=[one for one, _ in expected])
        assert [one.get("ErrorCode") for one in result["Entries"]] == [code for _, code in expected]
        assert result["FailedEntryCount"] == 7
        assert eventbridge.details() == [{"username": "good"}]

    @pytest.mark.parametrize(
        ("fault", "error", "arrived"),
        [
            ("reset", ConnectionClosedError, 0),
            ("reset-after", ConnectionClosedError, 1),
            ("close-after", ConnectionClosedError, 1),
            ("hang-after", ReadTimeoutError, 1),
        ],
    )
    def test_a_fault_comes_before_or_after_the_event_was_accepted(
        self, eventbridge: EventBridge, fault: str, error: type[Exception], arrived: int
    ) -> None:
        eventbridge.set(fault=fault)
        with pytest.raises(error):
            client(eventbridge).put_events(Entries=[entry()])
        assert len(eventbridge.entries()) == arrived

    def test_calls_in_progress_are_counted(self, eventbridge: EventBridge) -> None:
        eventbridge.set(delay=1)
        threads = [
            threading.Thread(target=one.put_events, kwargs={"Entries": [entry()]})
            for one in [client(eventbridge) for _ in range(3)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert eventbridge.most_in_progress() == 3
