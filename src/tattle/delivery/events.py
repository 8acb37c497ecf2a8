"""What is said, and saying it: session event + instance → PutEvents entry; publishing a batch.

https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import botocore.exceptions as aws
from botocore.config import Config as ClientConfig
from botocore.credentials import InstanceMetadataProvider
from botocore.parsers import ResponseParserError
from botocore.session import Session as AwsSession

from tattle import __version__
from tattle.delivery.config import Config
from tattle.delivery.fields import detail
from tattle.delivery.imds import (
    ATTEMPTS,
    DOMAIN,
    PARTITION,
    TAG,
    TIMEOUT,
    IdentityDocument,
    Metadata,
)
from tattle.errors import TattleError
from tattle.login.pam import Session
from tattle.trust import trusted

SIZE_LIMIT = 256 * 1024  # bytes of a call's entries, as entry_size() counts them
# PutEventsResultEntry: what no later try can change. Permissions and names can be mended.
FINAL = ("MalformedDetail", "InvalidArgument", "RedactionFailure")
TRY_LATER = ("Throttl", "TooManyRequests", "LimitExceeded", "Internal", "ServiceUnavailable")
OUR_FAULT = ("ResourceNotFoundException", "NotAuthorizedForSource", "NotAuthorizedForDetailType")
DATA_FAULT = ("ValidationException", "SerializationException", "RequestEntityTooLarge", *FINAL)

Entry = dict[str, Any]


class Result(NamedTuple):
    """What EventBridge said of one entry: its id, or why not."""

    event_id: str
    error: TattleError | None


def aws_session() -> tuple[AwsSession, Metadata]:
    """Return a botocore session that speaks IMDSv2 only, and its fetcher. Raises TattleError."""
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
            raise TattleError(f"ca_bundle: can't read {ca_bundle}", os.EX_CONFIG)
        if os.geteuid() == 0:
            refuse_foreign_files(session)
        session.user_agent_extra = f"tattle/{__version__}"
        session.set_config_variable("ec2_metadata_v1_disabled", True)
        metadata = Metadata(session)
        credentials = session.get_component("credential_provider")
        credentials.insert_after("iam-role", InstanceMetadataProvider(metadata))
        credentials.remove("iam-role")  # botocore's own, which would ask all over
        return session, metadata


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
            with contextlib.suppress(FileNotFoundError):
                trusted(os.path.abspath(os.path.expanduser(path)))


def arn(session: AwsSession, metadata: Metadata, document: IdentityDocument) -> str:
    """Return the instance's ARN, in the partition of its region. Raises TattleError."""
    region, account = document["region"], document["accountId"]
    try:
        partition = session.get_partition_for_region(region)
    except aws.UnknownRegionError:  # newer than this botocore: IMDS knows where it is
        partition = metadata.get(PARTITION) or "aws"
    return f"arn:{partition}:ec2:{region}:{account}:instance/{document['instanceId']}"


class Publisher:
    """EventBridge and the instance whose events it is told, for one configuration."""

    def __init__(self, config: Config, attempts: int, timeout: float) -> None:
        """Find out who and where this instance is. timeout in seconds. Raises TattleError."""
        self.config = config
        self.aws, self.metadata = aws_session()
        self.document = IdentityDocument() if config.resource else self.metadata.identity()
        self.region = config.region or self.document.get("region") or self._aws_region()
        self.resource = config.resource or arn(self.aws, self.metadata, self.document)
        self._tags: dict[str, str | None] = {}
        with faults(self.metadata), configuring():
            self.client = self.aws.create_client(
                "events",
                region_name=self.region,
                endpoint_url=self._endpoint(),
                verify=config.ca_bundle,
                config=ClientConfig(
                    connect_timeout=timeout,
                    read_timeout=timeout,
                    retries={"mode": "standard", "total_max_attempts": attempts},
                    proxies=proxies(config),
                    use_fips_endpoint=config.use_fips,
                    use_dualstack_endpoint=config.use_dualstack,
                ),
            )

    def entry(self, session: Session, believed: Callable[[Session], bool]) -> Entry:
        """Return the PutEvents entry for a session event; believed is detail()'s.

        Raises TattleError if it is too large.
        """
        config = self.config.of(session.pam.get("PAM_SERVICE"))
        seconds = int(session.context["TATTLE_TIME"]) // 10**9
        entry: Entry = {
            "Time": datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc),
            "Source": config.source,
            "Resources": [self.resource],
            "DetailType": config.detail_type,
            "Detail": detail(session, config.fields, self.document, self.tag, believed),
        }
        if config.event_bus:
            entry["EventBusName"] = config.event_bus
        if entry_size(entry) >= SIZE_LIMIT:
            fault = (
                f"an event of {entry_size(entry)} bytes: EventBridge takes less than {SIZE_LIMIT}"
            )
            raise TattleError(fault, os.EX_DATAERR)
        return entry

    def publish(self, entries: list[Entry]) -> list[Result]:
        """Send at most ten entries and return what became of each, in their order.

        Raises TattleError if the call as a whole did not succeed.
        """
        try:
            with faults(self.metadata):
                answer = self.client.put_events(Entries=entries)
            told = [
                Result(said.get("EventId", ""), _entry_error(said)) for said in answer["Entries"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):  # botocore's, over rubbish
            told = []
        if len(told) != len(entries):
            raise TattleError("EventBridge's answer makes no sense", os.EX_UNAVAILABLE)
        return told

    def tag(self, name: str) -> str | None:
        """Return the value of an instance tag, None where tags are off or there is no such tag."""
        if name not in self._tags:
            self._tags[name] = None if self.config.resource else self.metadata.get(TAG + name)
        return self._tags[name]

    def _aws_region(self) -> str:
        region = self.aws.get_config_variable("region")
        if not region:
            raise TattleError("no region: set `region` next to `resource`", os.EX_CONFIG)
        return str(region)

    def _endpoint(self) -> str | None:
        if self.config.endpoint_url:
            return self.config.endpoint_url
        try:
            self.aws.get_partition_for_region(self.region)
        except aws.UnknownRegionError:
            domain = None if self.config.resource else self.metadata.get(DOMAIN)
            if not domain:
                return None
            if self._wants("dualstack"):
                told = f"nobody knows {self.region}'s dual-stack name yet: set endpoint-url"
                raise TattleError(told, os.EX_CONFIG) from None
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


def _entry_error(said: dict[str, str]) -> TattleError | None:
    code = said.get("ErrorCode")
    if not code and said.get("EventId"):
        return None
    message = f"EventBridge rejected the event: {code}: {_told(said.get('ErrorMessage'))}"
    return TattleError(message, _status(code or "", 200))


def _told(message: str | None) -> str:
    """Return an error text of AWS's without what could hold a token: the request it saw."""
    return (message or "").split("\n")[0].partition("The Canonical String")[0][:300]


def _status(code: str, http: int) -> int:
    """Return the exit status for an error code of EventBridge or STS."""
    if any(word in code for word in TRY_LATER) or http == 429 or http >= 500:
        return os.EX_TEMPFAIL
    if code.startswith(OUR_FAULT) or http == 404:
        return os.EX_CONFIG
    return os.EX_DATAERR if code.startswith(DATA_FAULT) or http == 413 else os.EX_NOPERM


@contextlib.contextmanager
def configuring() -> Iterator[None]:
    """Turn what botocore raises over a senseless setting into what a person can act on."""
    try:
        yield
    except ValueError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG) from error


@contextlib.contextmanager
def faults(metadata: Metadata | None = None) -> Iterator[None]:
    """Turn what botocore raises into what a person can act on."""
    try:
        yield
    except aws.ClientError as error:
        said, http = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        status = _status(said.get("Code", ""), http)
        message = f"EventBridge: {said.get('Code', http)}: {_told(said.get('Message'))}"
        if status == os.EX_NOPERM:
            message += " (does the role allow events:PutEvents? is the clock right?)"
        raise TattleError(message, status) from error
    except (aws.NoCredentialsError, aws.CredentialRetrievalError, aws.MetadataRetrievalError) as e:
        # A profile with credential_source has a fetcher of botocore's, of which ours knows nothing.
        ours = metadata if metadata and isinstance(e, aws.NoCredentialsError) else None
        told = ours.fault() if ours else str(e)
        status = os.EX_NOPERM if ours and ours.reachable() else os.EX_UNAVAILABLE
        raise TattleError(f"no credentials: {told}", status) from e
    except (aws.HTTPClientError, aws.ConnectionError, ResponseParserError) as error:
        raise TattleError(f"EventBridge can't be reached: {error}", os.EX_UNAVAILABLE) from error
    except aws.BotoCoreError as error:
        raise TattleError(f"configuration: {error}", os.EX_CONFIG) from error
