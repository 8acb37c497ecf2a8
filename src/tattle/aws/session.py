"""What botocore does for tattle: its settings, credentials, partitions; and what its errors mean.

Every error becomes one that a person can act on: message, exit status, advice.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator

from botocore import exceptions
from botocore.credentials import Credentials
from botocore.handlers import BUILTIN_HANDLERS
from botocore.parsers import ResponseParserError
from botocore.session import Session as AwsSession
from urllib3.util.ssl_match_hostname import CertificateError

from tattle import __version__
from tattle.aws.http import NoPortError, cause, install
from tattle.aws.imds import (
    ATTEMPTS,
    PARTITION,
    PORTS,
    TIMEOUT,
    Imds,
    valid_in_header,
)
from tattle.errors import REPORT, TattleError
from tattle.event.config import PATH
from tattle.event.identity import IdentityDocument
from tattle.trust import trusted

# PutEventsResultEntry: what no later try can change. Permissions and names can be fixed.
FINAL = ("MalformedDetail", "InvalidArgument", "RedactionFailure")
NO_SUCH_BUS = "ResourceNotFoundException"  # DescribeEventBus says it, PutEvents does not
TRY_LATER = ("Throttl", "TooManyRequests", "LimitExceeded", "Internal", "ServiceUnavailable")
OUR_FAULT = (NO_SUCH_BUS, "NotAuthorizedForSource", "NotAuthorizedForDetailType")
DATA_FAULT = ("ValidationException", "SerializationException", "RequestEntityTooLarge", *FINAL)
CLOCK_FAULT = ("InvalidSignature", "SignatureDoesNotMatch", "RequestExpired", "ExpiredToken")
NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
)
# Of the names of botocore's events, the service: to register the handlers of all takes 3 ms.
SERVICES = ("", "events", "sts")
ROLE = "iam-role"  # botocore's provider of the instance's role
FROM_IMDS = (ROLE, "Ec2InstanceMetadata")  # the latter is a profile's credential_source
# A profile's settings that name another source than the instance's role
PROFILE_SOURCES = ("credential_process", "web_identity_token_file", "mfa_serial", "sso_session")
FIX_FILES = "fix root's ~/.aws/config, or the variables it was started with"
ASSUME = "the trust policy of the role in root's ~/.aws/config must name this instance's role"
CLOCK_ADVICE = "is the clock right? else whoever runs the endpoint must renew its certificate"
CA_ADVICE = f"`ca-bundle` in {PATH} must name the authority that signed the certificate"
NAME_ADVICE = f"`endpoint-url` in {PATH} must name the host that the certificate names"
NOT_YET_VALID, EXPIRED = 9, 10  # X509_V_ERR_CERT_*, OpenSSL's x509_vfy.h


def aws_session() -> tuple[AwsSession, Imds]:
    """Return a botocore session that speaks IMDSv2 only, and its IMDS. Raises TattleError."""
    install()
    with faults(), configuring():
        session = AwsSession(
            session_vars={
                name: (name, "AWS_" + name.upper(), default, int)
                for name, default in (
                    ("metadata_service_timeout", TIMEOUT),
                    ("metadata_service_num_attempts", ATTEMPTS),
                )
            },
            include_builtin_handlers=False,
        )
        for name, handler, *_ in BUILTIN_HANDLERS:
            if f"{name}.".split(".")[1] in SERVICES:
                session.register(name, handler)
        ca_bundle = session.get_config_variable("ca_bundle")
        if ca_bundle and not os.access(os.path.expanduser(ca_bundle), os.R_OK):
            raise TattleError(
                f"ca_bundle: can't read {ca_bundle}",
                os.EX_CONFIG,
                f"fix or remove it: ls -l {ca_bundle}",
            )
        if os.geteuid() == 0:
            refuse_foreign_files(session)
        session.user_agent_extra = f"tattle/{__version__}"
        session.set_config_variable("ec2_metadata_v1_disabled", True)
        imds = Imds(session)
        host = urllib.parse.urlsplit(imds.url).netloc
        if not urllib.request.proxy_bypass(host):
            # botocore would ask for the credentials through the proxy that a shell has set.
            others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
            os.environ["no_proxy"] = f"{others},{host}"
        return session, imds


def refuse_foreign_files(session: AwsSession) -> None:
    """Raise TattleError if root's AWS files could have been written by somebody else.

    Files that a variable names are the caller's choice; under PAM there is no variable.
    """
    setting = session.get_config_variable
    for variable, path in (
        ("AWS_CONFIG_FILE", setting("config_file")),
        ("AWS_SHARED_CREDENTIALS_FILE", setting("credentials_file")),
        ("AWS_CA_BUNDLE", setting("ca_bundle")),
        ("AWS_DATA_PATH", "~/.aws/models"),  # service models, which botocore prefers to its own
        ("BOTO_CONFIG", "/etc/boto.cfg"),
        ("BOTO_CONFIG", "~/.boto"),
    ):
        if path and variable not in os.environ:
            try:
                trusted(os.path.abspath(os.path.expanduser(path)))
            except FileNotFoundError:
                pass
            except TattleError as error:
                if os.path.expanduser("~") != pwd.getpwuid(0).pw_dir:  # sudo kept the caller's HOME
                    error.advice = "HOME is not root's: unset it, or use sudo's option -H"
                raise


def find_credentials(session: AwsSession, imds: Imds) -> Credentials:
    """Return botocore's credentials, from wherever it has them. Raises TattleError."""
    with faults(imds, "STS"):
        try:
            credentials = session.get_credentials()
            if credentials is None:
                raise exceptions.NoCredentialsError
            parts = credentials.get_frozen_credentials()  # of STS, for some
        except (ValueError, TypeError, RuntimeError, OSError, EOFError) as error:
            # botocore does not validate what IMDS, or a profile's program or file, gives it.
            profile = session.get_scoped_config()
            provider = next((source for source in PROFILE_SOURCES if source in profile), ROLE)
            reason = str(error) or type(error).__name__
            raise exceptions.CredentialRetrievalError(
                provider=provider, error_msg=reason
            ) from error
        if not all(map(valid_in_header, (parts.access_key, parts.token or "none"))):
            method = credentials.method
            raise exceptions.CredentialRetrievalError(provider=method, error_msg="not printable")
        return credentials


def arn(session: AwsSession, imds: Imds, document: IdentityDocument) -> str:
    """Return the instance's ARN, in the partition of its region. Raises TattleError."""
    region, account = document["region"], document["accountId"]
    try:
        partition = session.get_partition_for_region(region)
    except exceptions.UnknownRegionError:  # newer than this botocore: IMDS knows where it is
        partition = imds.name(PARTITION) or "aws"
    return f"arn:{partition}:ec2:{region}:{account}:instance/{document['instanceId']}"


@contextlib.contextmanager
def configuring() -> Iterator[None]:
    """Turn what botocore raises over an invalid setting into what a person can act on."""
    try:
        yield
    except ValueError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG, FIX_FILES) from error


@contextlib.contextmanager
def faults(imds: Imds | None = None, service: str = "EventBridge") -> Iterator[None]:
    """Turn what botocore raises about a service of AWS's into what a person can act on."""
    try:
        yield
    except exceptions.ClientError as error:
        said, http = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = said.get("Code", "")
        message = f"{service}: {code or http}: {redacted(said.get('Message'))}"
        status = exit_status(code, http)
        assumed = service == "STS" and status == os.EX_NOPERM
        raise TattleError(message, status, ASSUME if assumed else advice(code, http)) from error
    except NO_CREDENTIALS as error:
        raise no_credentials(error, imds) from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError, ResponseParserError) as error:
        if cause(error, NoPortError):
            fault = f"{service} can't be reached: no local port is free"
            raise TattleError(fault, os.EX_UNAVAILABLE, PORTS) from error
        fault = f"{service} can't be reached: {error}"
        raise TattleError(fault, os.EX_UNAVAILABLE, unreachable(error)) from error
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
    if cause(error, CertificateError):  # urllib3 compares the names itself
        return NAME_ADVICE
    fault = cause(error, ssl.SSLCertVerificationError)
    if fault:
        return CLOCK_ADVICE if fault.verify_code in (NOT_YET_VALID, EXPIRED) else CA_ADVICE
    return f"security group, route, VPC endpoint? Through a proxy: `proxy` in {PATH}"


def service_name(bus: str) -> str:
    """Return what to call EventBridge in a message about an event bus; "" is the default one."""
    return f"EventBridge, event bus {bus}" if bus else "EventBridge"


def redacted(message: str | None) -> str:
    """Return an error message of AWS's without the request that it may repeat, token and all."""
    return (message or "").split("\n")[0].partition("The Canonical String")[0][:300]


def exit_status(code: str, http: int) -> int:
    """Return the exit status for an error code of EventBridge or STS."""
    if any(word in code for word in TRY_LATER) or http == 429 or http >= 500:
        return os.EX_TEMPFAIL
    if code.startswith(OUR_FAULT) or http == 404:
        return os.EX_CONFIG
    if http == 413 and not code.startswith(DATA_FAULT):
        return os.EX_UNAVAILABLE  # a proxy's: it says nothing about the event
    return os.EX_DATAERR if code.startswith(DATA_FAULT) else os.EX_NOPERM


def advice(code: str, http: int) -> str:
    """Return what to do about an error code of EventBridge or STS."""
    if code.startswith(CLOCK_FAULT):
        return "set the clock: sudo chronyc makestep; else attach the instance profile again"
    if code == NO_SUCH_BUS:
        return f"correct `event-bus` in {PATH}; there are: aws events list-event-buses"
    if "Throttl" in code or http == 429:
        return "nothing: it is tried again. If it lasts, ask AWS for a higher PutEvents quota"
    return {
        os.EX_TEMPFAIL: "wait: it is tried again. If it lasts: https://health.aws.amazon.com/",
        os.EX_CONFIG: f"look at `source`, `detail-type` and `endpoint-url` in {PATH}",
        os.EX_UNAVAILABLE: "a proxy or a VPC endpoint? It must let 256 KB pass",
        os.EX_DATAERR: f"{REPORT}, with the event's record",
    }.get(exit_status(code, http), "the role must allow it: tattle recipe iam-policy.json")
