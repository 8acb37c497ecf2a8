"""What the errors of AWS and botocore mean: a message, an exit status, and advice for a person."""

from __future__ import annotations

import contextlib
import os
import ssl
import traceback
from collections.abc import Iterator

from botocore import exceptions
from botocore.parsers import ResponseParserError
from urllib3.util.ssl_match_hostname import CertificateError

from tattle.aws.http import NoPortError, cause
from tattle.aws.imds import PORTS, Imds
from tattle.errors import REPORT, TattleError, Unanswered
from tattle.event.config import PATH

# PutEventsResultEntry: what no later try can change. Permissions and names can be fixed.
FINAL = ("MalformedDetail", "InvalidArgument", "RedactionFailure")
NO_SUCH_BUS = "ResourceNotFoundException"  # DescribeEventBus says it, PutEvents does not
TRY_LATER_CODES = ("Throttl", "TooManyRequests", "LimitExceeded", "Internal", "ServiceUnavailable")
CONFIGURATION_CODES = ("NotAuthorizedForSource", "NotAuthorizedForDetailType")
DATA_CODES = ("ValidationException", "SerializationException", "RequestEntityTooLarge", *FINAL)
CLOCK_CODES = ("InvalidSignature", "SignatureDoesNotMatch", "RequestExpired", "ExpiredToken")
NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
)
# Errors after which a request may have been received
CONNECTION_LOST = (
    exceptions.ConnectionClosedError,
    exceptions.ReadTimeoutError,
    exceptions.ResponseStreamingError,
)
CONNECTING = {"_validate_conn", "_prepare_proxy"}  # in urllib3/connectionpool.py: before it is sent
ROLE = "iam-role"  # botocore's provider of the instance's role
FROM_IMDS = (ROLE, "Ec2InstanceMetadata")  # the latter is a profile's credential_source
FIX_FILES = "fix root's ~/.aws/config, or the variables it was started with"
ASSUME = "the trust policy of the role in root's ~/.aws/config must name this instance's role"
WAIT = "wait: it is tried again. If it lasts: https://health.aws.amazon.com/"
ASK_FOR_MORE = "nothing: it is tried again. If it lasts, ask AWS for a higher PutEvents quota"
CORRECT_BUS = f"correct `event-bus` in {PATH}; list them: aws events list-event-buses"
SET_CLOCK = "set the clock: sudo chronyc makestep; else attach the instance profile again"
CLOCK_ADVICE = "is the clock right? else whoever runs the endpoint must renew its certificate"
CA_ADVICE = f"`ca-bundle` in {PATH} must name the authority that signed the certificate"
NAME_ADVICE = f"`endpoint-url` in {PATH} must name the host that the certificate names"
NOT_YET_VALID, EXPIRED = 9, 10  # X509_V_ERR_CERT_*, OpenSSL's x509_vfy.h


@contextlib.contextmanager
def configuring() -> Iterator[None]:
    """Turn what botocore raises over an invalid setting into what a person can act on."""
    try:
        yield
    except ValueError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG, FIX_FILES) from error


@contextlib.contextmanager
def translate_errors(imds: Imds | None = None, service: str = "EventBridge") -> Iterator[None]:
    """Turn what botocore raises about a service of AWS's into what a person can act on."""
    try:
        yield
    except exceptions.ClientError as error:
        details = error.response["Error"]
        http = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = details.get("Code", "")
        message = f"{service}: {code or http}: {redacted(details.get('Message'))}"
        status, advice = meaning(code, http)
        assumed = service == "STS" and status == os.EX_NOPERM
        raise TattleError(message, status, ASSUME if assumed else advice) from error
    except NO_CREDENTIALS as error:
        raise no_credentials(error, imds) from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError, ResponseParserError) as error:
        reason = "no local port is free" if cause(error, NoPortError) else error
        message = f"{service} can't be reached: {reason}"
        raise TattleError(message, os.EX_UNAVAILABLE, unreachable(error)) from error
    except exceptions.BotoCoreError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG, FIX_FILES) from error


def no_credentials(error: exceptions.BotoCoreError, imds: Imds | None) -> TattleError:
    """Return the error for credentials that botocore did not get; IMDS knows of a role's."""
    of_role = (
        isinstance(error, exceptions.NoCredentialsError)
        or error.kwargs.get("provider") in FROM_IMDS
    )
    if imds and of_role:
        try:
            imds.role_expiration()
        except TattleError as why:
            return TattleError(f"no credentials: {why}", why.status, why.advice)
    return TattleError(f"no credentials: {error}", os.EX_UNAVAILABLE, FIX_FILES)


def unreachable(error: BaseException | None) -> str:
    """Return what to do about a connection that could not be made."""
    if cause(error, NoPortError):
        return PORTS
    if cause(error, CertificateError):  # urllib3 compares the names itself
        return NAME_ADVICE
    unverified = cause(error, ssl.SSLCertVerificationError)
    if unverified:
        return CLOCK_ADVICE if unverified.verify_code in (NOT_YET_VALID, EXPIRED) else CA_ADVICE
    return f"security group, route, VPC endpoint? Through a proxy: `proxy` in {PATH}"


def service_name(bus: str) -> str:
    """Return what to call EventBridge in a message about an event bus; "" is the default one."""
    return f"EventBridge, event bus {bus}" if bus else "EventBridge"


def redacted(message: str | None) -> str:
    """Return an error message of AWS's without the request that it may repeat, token and all."""
    return (message or "").split("\n")[0].partition("The Canonical String")[0][:300]


def meaning(code: str, http: int) -> tuple[int, str]:
    """Return exit status and advice for an error code of EventBridge or STS."""
    if "Throttl" in code or http == 429:
        return os.EX_TEMPFAIL, ASK_FOR_MORE
    if any(word in code for word in TRY_LATER_CODES) or http >= 500:
        return os.EX_TEMPFAIL, WAIT
    if code == NO_SUCH_BUS:
        return os.EX_CONFIG, CORRECT_BUS
    if code.startswith(CONFIGURATION_CODES) or http == 404:
        return os.EX_CONFIG, f"look at `source`, `detail-type` and `endpoint-url` in {PATH}"
    if code.startswith(DATA_CODES):
        return os.EX_DATAERR, f"{REPORT}, with the event's record"
    if http == 413:  # a proxy's: it says nothing about the event
        return os.EX_UNAVAILABLE, "a proxy or a VPC endpoint? It must let 256 KB pass"
    if code.startswith(CLOCK_CODES):
        return os.EX_NOPERM, SET_CLOCK
    return os.EX_NOPERM, "the role must allow it: tattle recipe iam-policy.json"


def refusal_of(result: dict[str, str], bus: str) -> TattleError | None:
    """Return why EventBridge did not take one entry: PutEventsResultEntry."""
    code = result.get("ErrorCode")
    if not code:
        return None if result.get("EventId") else Unanswered("unexpected response")
    reason = f"{code}: {redacted(result.get('ErrorMessage'))}"
    message = f"{service_name(bus)} rejected the event: {reason}"
    return TattleError(message, *meaning(code, 200))


def is_no_such_bus(error: TattleError) -> bool:
    """Tell whether EventBridge itself has said so: a 404 may be a proxy's."""
    original = error.__cause__
    return (
        isinstance(original, exceptions.ClientError)
        and original.response["Error"].get("Code") == NO_SUCH_BUS
    )


def was_sent(error: BaseException | None) -> bool:
    """Tell whether a request may have left before its connection failed."""
    while error:
        frames = traceback.walk_tb(error.__traceback__)
        if any(frame.f_code.co_name in CONNECTING for frame, _ in frames):
            return False
        error = error.__context__
    return True
