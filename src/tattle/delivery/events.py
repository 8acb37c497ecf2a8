"""EventBridge: from a session event and the instance to a PutEvents entry; sending a batch.

https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import pwd
import ssl
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import botocore.exceptions as aws
from botocore.config import Config as ClientConfig
from botocore.credentials import Credentials
from botocore.parsers import ResponseParserError
from botocore.session import Session as AwsSession
from urllib3.util.ssl_match_hostname import CertificateError

from tattle import __version__
from tattle.delivery.config import PATH, Config
from tattle.delivery.fault import Unanswered
from tattle.delivery.fields import detail
from tattle.delivery.imds import (
    ATTEMPTS,
    DOMAIN,
    PARTITION,
    TAG,
    TIMEOUT,
    IdentityDocument,
    Imds,
    sendable,
)
from tattle.errors import TattleError
from tattle.login.pam import Session
from tattle.trust import trusted

SIZE_LIMIT = 256 * 1024  # bytes of a call's entries, as entry_size() counts them
# PutEventsResultEntry: what no later try can change. Permissions and names can be fixed.
FINAL = ("MalformedDetail", "InvalidArgument", "RedactionFailure")
TRY_LATER = ("Throttl", "TooManyRequests", "LimitExceeded", "Internal", "ServiceUnavailable")
OUR_FAULT = ("ResourceNotFoundException", "NotAuthorizedForSource", "NotAuthorizedForDetailType")
DATA_FAULT = ("ValidationException", "SerializationException", "RequestEntityTooLarge", *FINAL)
CLOCK_FAULT = ("InvalidSignature", "SignatureDoesNotMatch", "RequestExpired", "ExpiredToken")
# What can happen to a request that was sent
CONNECTION_LOST = (aws.ConnectionClosedError, aws.ReadTimeoutError, aws.ResponseStreamingError)
UNEXPECTED_RESPONSE = (ResponseParserError, KeyError, TypeError, ValueError, AttributeError)
CONNECTING = {"_validate_conn", "_prepare_proxy"}  # in urllib3/connectionpool.py: before it is sent
NO_CREDENTIALS = (aws.NoCredentialsError, aws.CredentialRetrievalError, aws.MetadataRetrievalError)
ROLE = "iam-role"  # the instance's, as botocore names it; and as a profile names it:
FROM_IMDS = (ROLE, "Ec2InstanceMetadata")
FIX_FILES = "fix root's ~/.aws/config, or the variables it was started with"
CLOCK_ADVICE = "is the clock right? else whoever runs the endpoint must renew its certificate"
CA_ADVICE = f"`ca-bundle` in {PATH} must name the authority that signed the certificate"
NAME_ADVICE = f"`endpoint-url` in {PATH} must name the host that the certificate names"
NOT_YET_VALID, EXPIRED = 9, 10  # X509_V_ERR_CERT_*, OpenSSL's x509_vfy.h
SECOND_TRY_SECONDS = 0.5  # until the second one, where somebody waits

Entry = dict[str, Any]


class Result(NamedTuple):
    """What became of one entry: the event's id, or why EventBridge refused it."""

    event_id: str
    error: TattleError | None


def aws_session() -> tuple[AwsSession, Imds]:
    """Return a botocore session that speaks IMDSv2 only, and its IMDS. Raises TattleError."""
    with faults(), configuring():
        session = AwsSession(
            session_vars={
                name: (name, "AWS_" + name.upper(), default, int)
                for name, default in (
                    ("metadata_service_timeout", TIMEOUT),
                    ("metadata_service_num_attempts", ATTEMPTS),
                )
            }
        )
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
        # Else botocore asks IMDS for the credentials through the shell's HTTP proxy.
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        os.environ["no_proxy"] = f"{direct},{urllib.parse.urlsplit(imds.url).netloc}"
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
    with faults(imds):
        try:
            credentials = session.get_credentials()
        except (ValueError, TypeError) as error:  # botocore believes what IMDS says
            raise aws.CredentialRetrievalError(provider=ROLE, error_msg=str(error)) from error
        if credentials is None:
            raise aws.NoCredentialsError
        parts = credentials.get_frozen_credentials()  # of STS, for some
        if not all(map(sendable, (parts.access_key, parts.token or "none"))):
            method = credentials.method
            raise aws.CredentialRetrievalError(provider=method, error_msg="not printable")
        return credentials


def arn(session: AwsSession, imds: Imds, document: IdentityDocument) -> str:
    """Return the instance's ARN, in the partition of its region. Raises TattleError."""
    region, account = document["region"], document["accountId"]
    try:
        partition = session.get_partition_for_region(region)
    except aws.UnknownRegionError:  # newer than this botocore: IMDS knows where it is
        partition = imds.get(PARTITION) or "aws"
    return f"arn:{partition}:ec2:{region}:{account}:instance/{document['instanceId']}"


class Publisher:
    """EventBridge and the instance whose events it is told, for one configuration."""

    def __init__(self, config: Config, timeout: float) -> None:
        """Find out who and where this instance is. timeout in seconds. Raises TattleError."""
        self.config, self.timeout = config, timeout
        self.aws, self.imds = aws_session()
        self.document = IdentityDocument() if config.resource else self.imds.identity()
        self.region = config.region or self.document.get("region") or self._aws_region()
        self.resource = config.resource or arn(self.aws, self.imds, self.document)
        self._tags: dict[str, str | None] = {}

    @functools.cached_property
    def client(self) -> Any:
        """botocore's client for EventBridge, which looks for credentials. Raises TattleError."""
        with faults(self.imds), configuring():
            return self.aws.create_client(
                "events",
                region_name=self.region,
                endpoint_url=self._endpoint(),
                verify=self.config.ca_bundle,
                config=ClientConfig(
                    connect_timeout=self.timeout,
                    read_timeout=self.timeout,
                    # The caller tries again, who knows what may have arrived.
                    retries={"mode": "standard", "total_max_attempts": 1},
                    proxies=proxies(self.config),
                    use_fips_endpoint=self.config.use_fips,
                    use_dualstack_endpoint=self.config.use_dualstack,
                ),
            )

    def entry(self, session: Session, trusts_sshd: Callable[[Session], bool]) -> Entry:
        """Return the PutEvents entry for a session event; trusts_sshd is detail()'s.

        Raises TattleError if it is too large.
        """
        config = self.config.of(session.pam.get("PAM_SERVICE"))
        seconds = int(session.context["TATTLE_TIME"]) // 10**9
        entry: Entry = {
            "Time": datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc),
            "Source": config.source,
            "Resources": [self.resource],
            "DetailType": config.detail_type,
            "Detail": detail(session, config.fields, self.document, self.tag, trusts_sshd),
        }
        if config.event_bus:
            entry["EventBusName"] = config.event_bus
        if entry_size(entry) >= SIZE_LIMIT:
            fault = (
                f"an event of {entry_size(entry)} bytes: EventBridge takes less than {SIZE_LIMIT}"
            )
            raise TattleError(fault, os.EX_DATAERR, f"ask for fewer `fields` in {PATH}")
        return entry

    def publish(self, entries: list[Entry]) -> list[Result]:
        """Send at most ten entries for one bus; return what became of each, in their order.

        Raises TattleError if the call as a whole did not succeed, Unanswered if they may have
        arrived.
        """
        bus = entries[0].get("EventBusName", "")
        find_credentials(self.aws, self.imds)
        client = self.client
        with faults(self.imds, bus):
            try:
                answer = client.put_events(Entries=entries)
                results = [
                    Result(one.get("EventId", ""), _refusal(one, bus)) for one in answer["Entries"]
                ]
            except CONNECTION_LOST as error:
                if not _was_sent(error):
                    raise
                raise Unanswered(str(error)) from error
            except UNEXPECTED_RESPONSE as error:
                raise Unanswered("unexpected response") from error
        if len(results) != len(entries):
            raise Unanswered(f"unexpected response: {len(results)} results for {len(entries)}")
        return results

    def send(self, entry: Entry) -> str:
        """Send one event, where somebody waits, and return its id. Raises TattleError.

        What can't have arrived is sent a second time.
        """
        try:
            (result,) = self.publish([entry])
        except Unanswered:
            raise
        except TattleError as error:
            again = error.status in (os.EX_UNAVAILABLE, os.EX_TEMPFAIL)
            if not again or isinstance(error.__cause__, aws.NoCredentialsError):
                raise  # IMDS has been asked several times
            time.sleep(SECOND_TRY_SECONDS)
            (result,) = self.publish([entry])
        if result.error:
            raise result.error
        return result.event_id

    def tag(self, name: str) -> str | None:
        """Return the value of an instance tag, None where tags are off or there is no such tag."""
        if name not in self._tags:
            self._tags[name] = None if self.config.resource else self.imds.get(TAG + name)
        return self._tags[name]

    def _aws_region(self) -> str:
        region = self.aws.get_config_variable("region")
        if not region:
            raise TattleError(
                "no region", os.EX_CONFIG, f"set `region` next to `resource` in {PATH}"
            )
        return str(region)

    def _endpoint(self) -> str | None:
        if self.config.endpoint_url:
            return self.config.endpoint_url
        try:
            self.aws.get_partition_for_region(self.region)
        except aws.UnknownRegionError:
            domain = None if self.config.resource else self.imds.get(DOMAIN)
            if not domain:
                return None
            if self._wants("dualstack"):
                fault = f"nobody knows {self.region}'s dual-stack name yet"
                raise TattleError(fault, os.EX_CONFIG, f"set `endpoint-url` in {PATH}") from None
            service = "events-fips" if self._wants("fips") else "events"
            return f"https://{service}.{self.region}.{domain}"
        return None

    def _wants(self, variant: str) -> bool:
        ours = {"fips": self.config.use_fips, "dualstack": self.config.use_dualstack}[variant]
        return bool(
            self.aws.get_config_variable(f"use_{variant}_endpoint") if ours is None else ours
        )


def proxies(config: Config) -> dict[str, str] | None:
    """Return the proxies as botocore takes them; None: as its own settings have it."""
    return {"http": config.proxy, "https": config.proxy} if config.proxy else None


def entry_size(entry: Entry) -> int:
    """Return an entry's size in bytes as EventBridge counts it.

    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html#eb-putevent-size
    """
    texts = [entry["Source"], entry["DetailType"], entry["Detail"], *entry["Resources"]]
    return 14 + sum(len(text.encode()) for text in texts)  # 14 for Time


def unreachable(error: BaseException | None) -> str:
    """Return what to do about a connection that could not be made."""
    while error:
        if isinstance(error, CertificateError):  # urllib3 compares the names itself
            return NAME_ADVICE
        if isinstance(error, ssl.SSLCertVerificationError):
            return CLOCK_ADVICE if error.verify_code in (NOT_YET_VALID, EXPIRED) else CA_ADVICE
        error = error.__context__
    return f"security group, route, VPC endpoint? Through a proxy: `proxy` in {PATH}"


def _was_sent(error: BaseException | None) -> bool:
    """Tell whether a request may have left before its connection failed."""
    while error:
        frames = traceback.walk_tb(error.__traceback__)
        if any(frame.f_code.co_name in CONNECTING for frame, _ in frames):
            return False
        error = error.__context__
    return True


def _refusal(result: dict[str, str], bus: str) -> TattleError | None:
    """Return why EventBridge did not take one entry: PutEventsResultEntry."""
    code = result.get("ErrorCode") or ""
    if not code and result.get("EventId"):
        return None
    message = f"{_service(bus)} rejected the event: {code}: {_redacted(result.get('ErrorMessage'))}"
    return TattleError(message, _status(code, 200), _advice(code, 200))


def _service(bus: str) -> str:
    return f"EventBridge, event bus {bus}" if bus else "EventBridge"


def _redacted(message: str | None) -> str:
    """Return an error message of AWS's without the request that it may repeat, token and all."""
    return (message or "").split("\n")[0].partition("The Canonical String")[0][:300]


def _status(code: str, http: int) -> int:
    """Return the exit status for an error code of EventBridge or STS."""
    if any(word in code for word in TRY_LATER) or http == 429 or http >= 500:
        return os.EX_TEMPFAIL
    if code.startswith(OUR_FAULT) or http == 404:
        return os.EX_CONFIG
    return os.EX_DATAERR if code.startswith(DATA_FAULT) or http == 413 else os.EX_NOPERM


def _advice(code: str, http: int) -> str:
    """Return what to do about an error code of EventBridge or STS."""
    if code.startswith(CLOCK_FAULT):
        return "set the clock: sudo chronyc makestep; else attach the instance profile again"
    if "Throttl" in code or http == 429:
        return "nothing: it is tried again. If it lasts, ask AWS for a higher PutEvents quota"
    return {
        os.EX_TEMPFAIL: "wait: it is tried again. If it lasts: https://health.aws.amazon.com/",
        os.EX_CONFIG: f"is there such an event bus? See `event-bus` in {PATH}",
        os.EX_DATAERR: "please report it, with the event's record",
    }.get(_status(code, http), "the role must allow it: tattle recipe iam-policy.json")


@contextlib.contextmanager
def configuring() -> Iterator[None]:
    """Turn what botocore raises over an invalid setting into what a person can act on."""
    try:
        yield
    except ValueError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG, FIX_FILES) from error


@contextlib.contextmanager
def faults(imds: Imds | None = None, bus: str = "") -> Iterator[None]:
    """Turn what botocore raises into what a person can act on."""
    try:
        yield
    except aws.ClientError as error:
        said, http = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = said.get("Code", "")
        service = _service(bus) if error.operation_name == "PutEvents" else error.operation_name
        message = f"{service}: {code or http}: {_redacted(said.get('Message'))}"
        raise TattleError(message, _status(code, http), _advice(code, http)) from error
    except NO_CREDENTIALS as error:
        raise no_credentials(error, imds) from error
    except (aws.HTTPClientError, aws.ConnectionError, ResponseParserError) as error:
        fault = f"EventBridge can't be reached: {error}"
        raise TattleError(fault, os.EX_UNAVAILABLE, unreachable(error)) from error
    except aws.BotoCoreError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG, FIX_FILES) from error


def no_credentials(error: aws.BotoCoreError, imds: Imds | None) -> TattleError:
    """Return the error for credentials that botocore did not get; of a role's IMDS knows why."""
    of_role = isinstance(error, aws.NoCredentialsError) or error.kwargs.get("provider") in FROM_IMDS
    if imds and of_role:
        try:
            imds.role_expiration()
        except TattleError as why:
            return TattleError(f"no credentials: {why}", why.status, why.advice)
    return TattleError(f"no credentials: {error}", os.EX_UNAVAILABLE, FIX_FILES)
