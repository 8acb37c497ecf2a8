"""An EventBridge that believes nothing: it recomputes each request's signature, checks each entry
as Amazon EventBridge does, keeps what it accepted, and fails on demand.

It speaks what botocore 1.42 speaks to the service `events`: AWS JSON 1.1, signed with Signature
Version 4. It knows PutEvents and DescribeEventBus.

It is as unhelpful as the real one: PutEvents says yes to a bus that does not exist, and gives an
event id (aws/aws-cli#9186, aws/aws-sdk#186; localstack/localstack#8264 has a test that passes
against AWS). Only DescribeEventBus tells: `Event bus NAME does not exist.`, recorded from AWS in
localstack's tests/aws/services/events/test_events.snapshot.json.
"""

from __future__ import annotations

import calendar
import datetime
import hashlib
import hmac
import json
import re
import socket
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from standins import ROLE_CREDENTIALS, RoleCredentials
from standins.server import Answer, Asked, Settings, StandIn, Unanswered

if TYPE_CHECKING:
    from standins.ca import Ca, TlsConnection

PUT_EVENTS = "AWSEvents.PutEvents"
DESCRIBE = "AWSEvents.DescribeEventBus"
CONTENT_TYPE = "application/x-amz-json-1.1"

# https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
MOST_ENTRIES = 10
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevent-size.html: "The total entry
# size must be less than 256KB", counted as there.
ENTRIES_BYTES = 256 * 1024
TIME_BYTES = 14
LONGEST_DETAIL_TYPE = 128  # PutEventsRequestEntry's documentation

# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
ALGORITHM = "AWS4-HMAC-SHA256"
CLOCK_TOLERANCE_SECONDS = 300
SIGNED_AT_LEAST = frozenset({"host", "x-amz-date", "x-amz-security-token", "x-amz-target"})

_REQUIRED = ("Source", "DetailType", "Detail")

ACCOUNT = "012345678901"
REGION = "us-east-1"  # of an endpoint whose host name doesn't tell
REGION_IN_HOST = re.compile(r"^events(?:-fips)?\.([a-z]+(?:-[a-z]+)+-[0-9])\.")


class AwsError(Exception):
    """An error that AWS answers instead of a result."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def answer(self) -> Answer:
        body = json.dumps({"__type": self.code, "message": str(self)}).encode()
        return Answer(self.status, body, CONTENT_TYPE, _request_id())


def access_denied(action: str, bus: str = "default", policy: str = "identity-based") -> AwsError:
    """What AWS answers where no policy of that kind allows the action on the bus, or its ARN."""
    own = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/"
    return AwsError(
        400,
        "AccessDeniedException",
        f"User: arn:aws:sts::{ACCOUNT}:assumed-role/tattle/i-abc123abc123 is not authorized to "
        f"perform: events:{action} on resource: {bus if bus.startswith('arn:') else own + bus} "
        f"because no {policy} policy allows the events:{action} action",
    )


ERRORS = {
    "access-denied": access_denied("PutEvents"),
    "throttle": AwsError(400, "ThrottlingException", "Rate exceeded"),
    "validation": AwsError(400, "ValidationException", "1 validation error detected"),
    "expired-token": AwsError(
        400, "ExpiredTokenException", "The security token included in the request is expired"
    ),
}


AFTER = {f"{fault}-after": fault for fault in ("reset", "close", "hang", "trickle")}
"""The faults that come only once the entries were accepted, and what happens then."""


@dataclass(frozen=True)
class Rejection:
    """A rule by which single entries fail: those whose Detail contains a text, the first `times`
    times that one does (None: always)."""

    contains: str
    code: str = "InternalFailure"
    message: str = "The request processing has failed"
    times: int | None = None


@dataclass(frozen=True)
class EventBridgeSettings(Settings):
    """Faults, besides Settings': those in ERRORS, as AWS words them, and those in AFTER."""

    fault_times: int | None = None
    """How many calls the fault spoils before it is over; None: all of them."""
    fault_share: tuple[int, int] | None = None
    """(9, 10): of each ten calls the fault spoils the first nine."""
    rejections: Sequence[Rejection] = ()
    denied_buses: Sequence[str] = ()
    """Event buses, by name, that the role may not send to: a call with an entry for one fails."""
    missing_buses: Sequence[str] = ()
    """Those that do not exist; all others do. What is sent to one is accepted, and is nowhere."""
    undescribed_buses: Sequence[str] = ()
    """Those of the own account that the role may not describe."""
    shared_buses: Sequence[str] = ()
    """ARNs of those of other accounts whose policy lets the role describe them."""
    look_up_fault: str | int | None = None
    """A fault, as those of PutEvents, but of DescribeEventBus."""
    clock_skew: float = 0.0
    """Seconds by which the service's clock is ahead of the machine's."""
    certificate: str = "good"
    """One of the kinds in standins.ca."""
    credentials: Sequence[RoleCredentials] = (ROLE_CREDENTIALS,)
    """Those whose signatures are believed."""


@dataclass(frozen=True)
class Entry:
    """An entry that was accepted."""

    raw: Mapping[str, Any]
    """As it was sent; `Detail` is a string of JSON in it."""
    event_id: str
    arrived: float
    """time.monotonic()"""

    @property
    def detail(self) -> dict[str, Any]:
        detail: dict[str, Any] = json.loads(self.raw["Detail"])
        return detail


@dataclass(frozen=True)
class Call:
    """One request, whatever became of it."""

    arrived: float
    """time.monotonic()"""
    entry_count: int
    outcome: str
    """"accepted", an error's code, or the fault it ran into."""
    host: str
    server_name: str | None
    """The name in the TLS handshake (SNI)."""
    headers: Mapping[str, str]


class EventBridge(StandIn[EventBridgeSettings]):
    banner = "EventBridge"
    faults = StandIn.faults | {*ERRORS, *AFTER}

    def __init__(self, *sockets: socket.socket, ca: Ca | None = None, **settings: Any) -> None:
        super().__init__(EventBridgeSettings(**settings), *sockets)
        self._ca = ca
        self._tls: ssl.SSLContext | None = None
        if ca:
            self.scheme = "https"
            self._tls = ca.make_context("localhost")  # none is shown but those of _show_certificate
            self._tls.sni_callback = self._show_certificate  # type: ignore[assignment]
        self._entries: list[Entry] = []
        self._calls: list[Call] = []
        self._looked_up: list[str] = []
        self._in_progress = 0
        self._most_in_progress = 0
        self._calls_under_fault = 0
        self._rejected: Counter[Rejection] = Counter()

    # The surface for tests

    def entries(self) -> list[Entry]:
        """The entries accepted, in the order of acceptance."""
        with self._changed:
            return list(self._entries)

    def details(self) -> list[dict[str, Any]]:
        """The entries' details, parsed, in the order of acceptance."""
        return [entry.detail for entry in self.entries()]

    def calls(self) -> list[Call]:
        """The PutEvents calls."""
        with self._changed:
            return list(self._calls)

    def looked_up(self) -> list[str]:
        """The names of the buses that were asked for."""
        with self._changed:
            return list(self._looked_up)

    def most_in_progress(self) -> int:
        """How many calls were at most in progress at one time."""
        with self._changed:
            return self._most_in_progress

    def wait_for(self, count: int, timeout: float = 20.0) -> list[Entry]:
        """The entries, once that many were accepted; AssertionError if they aren't in time."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._entries) >= count, timeout)
            outcomes = [call.outcome for call in self._calls[-10:]]
            assert arrived, (
                f"{len(self._entries)} of {count} entries arrived within {timeout} s; "
                f"{len(self._calls)} calls, the last: {outcomes}"
            )
            return list(self._entries)

    def wait_for_calls(self, count: int, timeout: float = 20.0) -> list[Call]:
        """The calls, once there were that many; AssertionError if there aren't in time."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._calls) >= count, timeout)
            assert arrived, f"{len(self._calls)} of {count} calls within {timeout} s"
            return list(self._calls)

    def set(self, **changes: Any) -> None:
        with self._changed:
            super().set(**changes)
            if {"fault", "fault_times", "fault_share"} & set(changes):
                self._calls_under_fault = 0
            if "rejections" in changes:
                self._rejected.clear()

    def clear(self) -> None:
        super().clear()
        with self._changed:
            self._entries.clear()
            self._calls.clear()
            self._looked_up.clear()
            self._most_in_progress = self._in_progress
            self._calls_under_fault = 0
            self._rejected.clear()

    # Answering

    def hangs_at_connect(self) -> bool:
        settings = self.settings
        limited = settings.fault_times is not None or settings.fault_share is not None
        return super().hangs_at_connect() and not limited

    def secure(self, connection: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(connection, server_side=True) if self._tls else connection

    def _show_certificate(
        self, connection: TlsConnection, server_name: str | None, _: ssl.SSLContext
    ) -> None:
        assert self._ca
        connection.server_name = server_name
        kind = self.settings.certificate
        connection.context = self._ca.context(server_name or "localhost", kind)

    def now(self) -> float:
        return time.time() + self.settings.clock_skew

    def answer(self, asked: Asked) -> Answer:
        if asked.headers.get("x-amz-target") == DESCRIBE:
            return self._describe(asked)
        with self._changed:
            self._in_progress += 1
            self._most_in_progress = max(self._most_in_progress, self._in_progress)
            fault = self._fault_of_this_call()
        try:
            return self._answer(asked, fault)
        finally:
            with self._changed:
                self._in_progress -= 1

    def _describe(self, asked: Asked) -> Answer:
        settings, fault = self.settings, self.settings.look_up_fault
        try:
            bus = json.loads(asked.body)["Name"]
            with self._changed:
                self._looked_up.append(bus)
            self._authenticate(asked)
            if fault in ERRORS:
                raise ERRORS[str(fault)]
            if fault is not None:
                return self.fail(fault)
            arn = described(bus, settings, self._region(asked))
        except AwsError as error:
            return error.answer()
        body = json.dumps({"Arn": arn, "Name": arn.partition("/")[2]})
        return Answer(200, body.encode(), CONTENT_TYPE, _request_id())

    def _fault_of_this_call(self) -> str | int | None:
        settings = self.settings
        index = self._calls_under_fault
        self._calls_under_fault += 1
        if settings.fault_times is not None and index >= settings.fault_times:
            return None
        if settings.fault_share is not None:
            spoilt, of = settings.fault_share
            return settings.fault if index % of < spoilt else None
        return settings.fault

    def _answer(self, asked: Asked, fault: str | int | None) -> Answer:
        entries: list[Any] = []
        try:
            entries = parse(asked)
            self._authenticate(asked)
            if fault in ERRORS:
                raise ERRORS[str(fault)]
            buses = {entry.get("EventBusName", "default") for entry in entries}
            for bus in buses & {*self.settings.denied_buses}:
                raise access_denied("PutEvents", bus)
            check_request(entries)
        except AwsError as error:
            self._record(asked, entries, error.code)
            self.sleep(self.settings.delay)
            return error.answer()
        if fault is not None and fault not in AFTER:
            self._record(asked, entries, str(fault))
            self.sleep(self.settings.delay)
            return self.fail(fault)
        answer = self._accept_entries(asked, entries)
        self.sleep(self.settings.delay)
        if fault is not None:
            raise Unanswered(AFTER[str(fault)])
        return answer

    def _authenticate(self, asked: Asked) -> None:
        verify_signature(asked, self.settings.credentials, self._region(asked), self.now())

    def _region(self, asked: Asked) -> str:
        in_host = REGION_IN_HOST.match(asked.headers.get("host", ""))
        return in_host[1] if in_host else REGION

    def error(self, status: int) -> Answer:
        if status == 413:  # a proxy's: EventBridge itself has other words for what is too large
            return Answer(status, b"<html>413 Request Entity Too Large</html>", "text/html")
        code = {500: "InternalException", 503: "ServiceUnavailable"}.get(status, "Fault")
        return AwsError(status, code, "The request processing has failed").answer()

    def _accept_entries(self, asked: Asked, entries: list[dict[str, Any]]) -> Answer:
        results = []
        with self._changed:
            for entry in entries:
                rejection = check_entry(entry) or self._reject(entry)
                if rejection:
                    results.append({"ErrorCode": rejection[0], "ErrorMessage": rejection[1]})
                else:
                    event_id = str(uuid.uuid4())
                    results.append({"EventId": event_id})
                    if entry.get("EventBusName") in self.settings.missing_buses:
                        continue
                    self._entries.append(Entry(entry, event_id, asked.arrived))
            self._record(asked, entries, "accepted")
        failed_count = sum("ErrorCode" in result for result in results)
        body = json.dumps({"FailedEntryCount": failed_count, "Entries": results})
        return Answer(200, body.encode(), CONTENT_TYPE, _request_id())

    def _reject(self, entry: dict[str, Any]) -> tuple[str, str] | None:
        for rule in self.settings.rejections:
            if rule.contains in entry["Detail"]:
                self._rejected[rule] += 1
                if rule.times is None or self._rejected[rule] <= rule.times:
                    return rule.code, rule.message
        return None

    def _record(self, asked: Asked, entries: list[Any], outcome: str) -> None:
        with self._changed:
            self._calls.append(
                Call(
                    arrived=asked.arrived,
                    entry_count=len(entries),
                    outcome=outcome,
                    host=asked.headers.get("host", ""),
                    server_name=asked.server_name,
                    headers=asked.headers,
                )
            )
            self._changed.notify_all()


def described(bus: str, settings: EventBridgeSettings, region: str) -> str:
    """The ARN of a bus; AwsError if there is none, or the role may not see it.

    Another region's is refused in these words (aws-samples/amazon-eventbridge-resource-policy-
    samples#10, of PutRule), and another account's where no policy of the bus allows it: aws/aws-cdk
    #26032, of PutRule.
    """
    in_arn = re.fullmatch(r"arn:[\w-]+:events:([\w-]+):([0-9]{12}):event-bus/.+", bus)
    if in_arn and in_arn[1] != region:
        raise AwsError(400, "ValidationException", "Cross-region api call is not allowed.")
    if in_arn and in_arn[2] != ACCOUNT and bus not in settings.shared_buses:
        raise access_denied("DescribeEventBus", bus, "resource-based")
    if bus in settings.undescribed_buses:
        raise access_denied("DescribeEventBus", bus)
    if bus in settings.missing_buses:
        name = bus.rpartition(":event-bus/")[2]
        raise AwsError(400, "ResourceNotFoundException", f"Event bus {name} does not exist.")
    return bus if in_arn else f"arn:aws:events:{region}:{ACCOUNT}:event-bus/{bus}"


def parse(asked: Asked) -> list[Any]:
    """The request's entries; AwsError if it isn't a PutEvents call."""
    target = asked.headers.get("x-amz-target")
    if (asked.method, asked.path, target) != ("POST", "/", PUT_EVENTS):
        raise AwsError(404, "UnknownOperationException", "Unknown operation")
    if asked.headers.get("content-type") != CONTENT_TYPE:
        raise AwsError(404, "UnknownOperationException", "Unknown content type")
    try:
        body = json.loads(asked.body)
        entries = body["Entries"]
    except (ValueError, TypeError, KeyError):
        raise AwsError(400, "SerializationException", "Not a PutEvents request") from None
    if not isinstance(entries, list) or not all(map(_has_right_types, entries)):
        raise AwsError(400, "SerializationException", "Entries has members of the wrong type")
    return entries


def _has_right_types(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    texts = [entry[name] for name in (*_REQUIRED, "EventBusName") if name in entry]
    resources = entry.get("Resources", [])
    return (
        isinstance(entry.get("Time", 0), (int, float))
        and isinstance(resources, list)
        and all(isinstance(text, str) and _is_unicode(text) for text in [*texts, *resources])
    )


def _is_unicode(text: str) -> bool:
    """No lone surrogates, which JSON can carry and UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_request(entries: list[dict[str, Any]]) -> None:
    """Refuse what EventBridge refuses as a whole."""
    if not 1 <= len(entries) <= MOST_ENTRIES:
        raise AwsError(
            400,
            "ValidationException",
            "1 validation error detected: Value at 'entries' failed to satisfy constraint: "
            f"Member must have length between 1 and {MOST_ENTRIES}, inclusive",
        )
    if sum(map(entry_size, entries)) >= ENTRIES_BYTES:
        raise AwsError(
            400,
            "ValidationException",
            "Total size of the entries in the request is over the limit.",
        )
    # "If you submit a request in which none of the entries have each of these properties,
    # EventBridge fails the entire request."
    if not any(all(entry.get(name) for name in _REQUIRED) for entry in entries):
        raise AwsError(400, "ValidationException", "No entry has Source, DetailType and Detail")


def entry_size(entry: Mapping[str, Any]) -> int:
    """An entry's size in bytes as the quota counts it."""
    texts = [str(entry.get(name) or "") for name in _REQUIRED] + list(entry.get("Resources") or ())
    return sum(len(text.encode()) for text in texts) + (TIME_BYTES if "Time" in entry else 0)


def check_entry(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    """The error code and message by which EventBridge rejects an entry, None for a good one."""
    for name in _REQUIRED:
        if not entry.get(name):
            reason = f"Parameter {name} is not valid. Reason: {name} is a required argument."
            return "InvalidArgument", reason
    if len(entry["DetailType"]) > LONGEST_DETAIL_TYPE:
        return "InvalidArgument", "Parameter DetailType is not valid. Reason: it is too long."
    if entry["Source"].startswith("aws."):
        return "NotAuthorizedForSourceException", "Not authorized for the source."
    try:
        detail = json.loads(entry["Detail"], parse_constant=_not_json)
    except ValueError:
        detail = None
    if not isinstance(detail, dict) or not _is_unicode(json.dumps(detail, ensure_ascii=False)):
        return "MalformedDetail", "Detail is malformed."
    return None


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def verify_signature(
    asked: Asked, known: Sequence[RoleCredentials], region: str, now: float
) -> None:
    """Refuse a request that isn't signed (SigV4) with one of the known credentials, for that region
    and the service `events`, at about that time (seconds since the epoch)."""
    authorization = asked.headers.get("authorization", "")
    parts = re.fullmatch(
        rf"{ALGORITHM} Credential=([^/, ]+)/(\d{{8}})/([^/, ]+)/([^/, ]+)/aws4_request, ?"
        r"SignedHeaders=([^, ]+), ?Signature=([0-9a-f]{64})",
        authorization,
    )
    if not parts:
        if not authorization:
            raise AwsError(
                400, "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        raise AwsError(400, "IncompleteSignatureException", f"Not understood: {authorization!r}")
    access_key_id, date, scope_region, service, signed, signature = parts.groups()
    signed_names = signed.split(";")
    credentials = next((one for one in known if one.access_key_id == access_key_id), None)
    if credentials is None or (
        asked.headers.get("x-amz-security-token", "") != credentials.session_token
    ):
        raise AwsError(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
    if (scope_region, service) != (region, "events"):
        raise _invalid(
            f"Credential should be scoped to a valid region and to service 'events', not to "
            f"{scope_region!r} and {service!r}."
        )
    if SIGNED_AT_LEAST - {*signed_names}:
        raise _invalid(f"Not signed: {sorted(SIGNED_AT_LEAST - {*signed_names})}")
    if signed_names != sorted(signed_names):
        raise _invalid("The signed headers are not in order.")
    _check_time(asked.headers.get("x-amz-date", ""), date, now)
    expected = _signature(asked, signed_names, credentials, f"{date}/{region}/events/aws4_request")
    if not hmac.compare_digest(expected, signature):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. Check "
            "your AWS Secret Access Key and signing method. Consult the service documentation for "
            "details."
        )


def _invalid(message: str) -> AwsError:
    return AwsError(400, "InvalidSignatureException", message)


def _check_time(stamp: str, date: str, now: float) -> None:
    if not (re.fullmatch(r"\d{8}T\d{6}Z", stamp) and stamp.startswith(date)):
        raise _invalid(f"Date in Credential scope does not match {stamp!r}.")
    off = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) - now
    service_time = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    if off < -CLOCK_TOLERANCE_SECONDS:
        raise _invalid(
            f"Signature expired: {stamp} is now earlier than {service_time:%Y%m%dT%H%M%SZ} - 5 min."
        )
    if off > CLOCK_TOLERANCE_SECONDS:
        raise _invalid(
            f"Signature not yet current: {stamp} is still later than "
            f"{service_time:%Y%m%dT%H%M%SZ} + 5 min."
        )


def _signature(
    asked: Asked, signed_names: list[str], credentials: RoleCredentials, scope: str
) -> str:
    headers = [f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in signed_names]
    canonical = "\n".join(
        [
            asked.method,
            asked.path,
            "",  # the query
            "".join(headers),
            ";".join(signed_names),
            hashlib.sha256(asked.body).hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join([ALGORITHM, asked.headers["x-amz-date"], scope, digest])
    key = b"AWS4" + credentials.secret_access_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _request_id() -> dict[str, str]:
    return {"x-amzn-RequestId": str(uuid.uuid4())}
