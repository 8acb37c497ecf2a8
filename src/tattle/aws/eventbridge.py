"""EventBridge: from a session event and the instance to a PutEvents entry; sending a batch.

https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

import datetime
import functools
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from botocore import exceptions
from botocore.config import Config as ClientConfig
from botocore.parsers import ResponseParserError

from tattle.aws.credentials import arn, aws_session, find_credentials
from tattle.aws.errors import (
    CONNECTION_LOST,
    configuring,
    is_no_such_bus,
    refusal_of,
    service_name,
    translate_errors,
    was_sent,
)
from tattle.aws.http import cause
from tattle.aws.imds import DOMAIN
from tattle.errors import TattleError, Unanswered
from tattle.event.config import PATH, Config, is_default
from tattle.event.fields import detail
from tattle.event.identity import IdentityDocument
from tattle.login.pam import Session

SIZE_LIMIT = 256 * 1024  # bytes of a call's entries, as entry_size() counts them
UNEXPECTED_RESPONSE = (
    *(ResponseParserError, KeyError, TypeError, ValueError, AttributeError, RecursionError),
)
# pack.py makes it. To load all 130 authorities takes OpenSSL 3 some 15 ms.
AMAZON_ROOTS = Path(__file__).with_name("amazon_roots.pem")
INTERACTIVE_TIMEOUT = 3.0  # seconds for a connection, and for an answer, where somebody waits
SECOND_TRY_SECONDS = 0.5  # until the second one, where somebody waits

Entry = dict[str, Any]


class Result(NamedTuple):
    """What became of one entry: the event's id, or why EventBridge refused it."""

    event_id: str
    error: TattleError | None


class Publisher:
    """Sends this instance's events to EventBridge, by one configuration."""

    def __init__(self, config: Config, timeout: float) -> None:
        """Find out who and where this instance is. timeout in seconds. Raises TattleError."""
        self.config, self.timeout = config, timeout
        self.aws, self.imds = aws_session()
        self.document = IdentityDocument() if config.resource else self.imds.identity()
        aws_region = self.aws.get_config_variable("region")
        self.region: str = config.region or self.document.get("region") or aws_region
        if not self.region:
            advice = f"set `region` next to `resource` in {PATH}"
            raise TattleError("no region", os.EX_CONFIG, advice)
        self.resource = config.resource or arn(self.aws, self.imds, self.document)
        self._tags: dict[str, str | None] = {}
        self._buses: dict[str, TattleError | None] = {}
        self._roots = self._amazon_roots()

    @functools.cached_property
    def client(self) -> Any:
        """botocore's client for EventBridge, which looks for credentials. Raises TattleError."""
        with translate_errors(self.imds), configuring():
            return self.aws.create_client(
                "events",
                region_name=self.region,
                endpoint_url=self._endpoint(),
                verify=self.config.ca_bundle or self._roots,
                config=ClientConfig(
                    connect_timeout=self.timeout,
                    read_timeout=self.timeout,
                    # The caller tries again: it knows what may have arrived.
                    retries={"mode": "standard", "total_max_attempts": 1},
                    proxies=proxies(self.config),
                    use_fips_endpoint=self.config.use_fips,
                    use_dualstack_endpoint=self.config.use_dualstack,
                    # Else botocore makes it up anew, twice for each call: a tenth of its CPU time.
                    user_agent=self.aws.user_agent(),
                ),
            )

    def prepared_client(self) -> Any:
        """Return the client, once IMDS or STS has given credentials. Raises TattleError."""
        find_credentials(self.aws, self.imds)
        return self.client

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
        if (size := entry_size(entry)) >= SIZE_LIMIT:
            message = f"an event of {size} bytes: EventBridge takes less than {SIZE_LIMIT}"
            raise TattleError(message, os.EX_DATAERR, f"ask for fewer `fields` in {PATH}")
        return entry

    def publish(self, entries: list[Entry]) -> list[Result]:
        """Send at most ten entries for one bus; return what became of each, in their order.

        Raises TattleError if the call as a whole did not succeed, Unanswered if they may have
        arrived.
        """
        bus = entries[0].get("EventBusName", "")
        self.verify_bus(bus)
        with translate_errors(self.imds, service_name(bus)):
            try:
                answer = self._call("put_events", Entries=entries)
                found = answer["Entries"]
                results = [Result(one.get("EventId", ""), refusal_of(one, bus)) for one in found]
            except CONNECTION_LOST as error:
                if not was_sent(error):
                    raise
                raise Unanswered(str(error)) from error
            except UNEXPECTED_RESPONSE as error:
                raise Unanswered("unexpected response") from error
        if len(results) != len(entries):
            raise Unanswered(f"unexpected response: {len(results)} results for {len(entries)}")
        return results

    def verify_bus(self, bus: str) -> TattleError | None:
        """Return None if the bus exists, or the error that kept us from finding out.

        Raises TattleError if it does not exist: PutEvents says yes to it all the same, and what is
        sent to it is gone (aws/aws-cli#9186). A lasting answer is asked for once.
        """
        if is_default(bus):
            return None
        if bus not in self._buses:
            doubt = self._described(bus)
            if doubt and doubt.status == os.EX_TEMPFAIL:
                return doubt
            self._buses[bus] = doubt
        return self._buses[bus]

    def _described(self, bus: str) -> TattleError | None:
        try:
            with translate_errors(self.imds, service_name(bus)):
                answer = self._call("describe_event_bus", Name=bus)
            return None if answer.get("Arn") else Unanswered("unexpected response")
        except UNEXPECTED_RESPONSE:
            return Unanswered("unexpected response")
        except TattleError as error:
            if is_no_such_bus(error):
                raise
            return error

    def _call(self, operation: str, **parameters: Any) -> Any:
        """Call EventBridge, whose certificate can be another authority's than Amazon's."""
        try:
            return getattr(self.prepared_client(), operation)(**parameters)
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            if not self._roots or not cause(error, ssl.SSLCertVerificationError):
                raise
        self._roots = None
        del self.client
        return self._call(operation, **parameters)

    def send(self, entry: Entry) -> str:
        """Send one event, where somebody waits, and return its id. Raises TattleError.

        What can't have arrived is sent a second time.
        """
        try:
            (result,) = self.publish([entry])
        except TattleError as error:
            again = error.status in (os.EX_UNAVAILABLE, os.EX_TEMPFAIL)
            if not again or isinstance(error, Unanswered):
                raise
            if isinstance(error.__cause__, exceptions.NoCredentialsError):
                raise  # IMDS has been asked several times
            time.sleep(SECOND_TRY_SECONDS)
            (result,) = self.publish([entry])
        if result.error:
            raise result.error
        return result.event_id

    def tag(self, name: str) -> str | None:
        """Return the value of an instance tag, None where tags are off or there is no such tag."""
        if name not in self._tags:
            self._tags[name] = None if self.config.resource else self.imds.tag(name)
        return self._tags[name]

    def _amazon_roots(self) -> str | None:
        """Return the file of Amazon's own authorities; None where others have been chosen."""
        chosen = self.aws.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return str(AMAZON_ROOTS) if not chosen and AMAZON_ROOTS.exists() else None

    def _endpoint(self) -> str | None:
        if self.config.endpoint_url:
            return self.config.endpoint_url
        try:
            self.aws.get_partition_for_region(self.region)
        except exceptions.UnknownRegionError:
            domain = None if self.config.resource else self.imds.name(DOMAIN)
            if not domain:
                return None
            if self._wants("dualstack"):
                message = f"no dual-stack endpoint is known for {self.region}"
                raise TattleError(message, os.EX_CONFIG, f"set `endpoint-url` in {PATH}") from None
            service = "events-fips" if self._wants("fips") else "events"
            return f"https://{service}.{self.region}.{domain}"
        return None

    def _wants(self, variant: str) -> bool:
        ours = getattr(self.config, f"use_{variant}")
        of_botocore = self.aws.get_config_variable(f"use_{variant}_endpoint")
        return bool(of_botocore if ours is None else ours)


def proxies(config: Config) -> dict[str, str] | None:
    """Return the proxies as botocore takes them; None: as its own settings have it."""
    return {"http": config.proxy, "https": config.proxy} if config.proxy else None


def entry_size(entry: Entry) -> int:
    """Return an entry's size in bytes as EventBridge counts it.

    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html#eb-putevent-size
    """
    texts = [entry["Source"], entry["DetailType"], entry["Detail"], *entry["Resources"]]
    return 14 + sum(len(text.encode()) for text in texts)  # 14 for Time
