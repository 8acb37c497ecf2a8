"""The probes of what an event needs beyond this host: identity, role, EventBridge, the clock."""

from __future__ import annotations

import datetime
import json
import os
import socket
import urllib.parse
from collections.abc import Iterator

from tattle.aws.clock import seconds_ahead
from tattle.aws.credentials import arn, aws_session, find_credentials
from tattle.aws.errors import ROLE
from tattle.aws.eventbridge import INTERACTIVE_TIMEOUT, Publisher
from tattle.aws.imds import REATTACH
from tattle.errors import TattleError
from tattle.event.config import PATH, Config, load
from tattle.event.fields import own_hostname
from tattle.shell.finding import ERROR, OK, SKIPPED, WARNING, Finding, failed

CLOCK_TOLERANCE = 240.0  # seconds; Signature Version 4 allows five minutes
DETAIL_TYPE = "tattle check"
DESCRIBE = (
    "look there whether events arrive;"
    " to be sure, allow events:DescribeEventBus on it: tattle recipe iam-policy.json"
)


def configuration() -> Iterator[Finding]:
    """Read the configuration file, as the deliverer will. Raises TattleError."""
    config = load()
    services = ", ".join(config.services) or "none of their own"
    message = "the defaults" if config == Config() else f"{PATH}, with services: {services}"
    yield Finding("configuration", OK, message)


def identity(config: Config) -> Iterator[Finding]:
    """Find out which instance this is. Raises TattleError."""
    session, imds = aws_session()
    yield Finding("identity", OK, config.resource or arn(session, imds, imds.identity()))


def role() -> Iterator[Finding]:
    """Look for credentials, and whether they are still valid. Raises TattleError."""
    session, imds = aws_session()
    credentials = find_credentials(session, imds)
    found = f"credentials from {credentials.method}"
    if credentials.method != ROLE:
        yield Finding("role", OK, found)
        return
    # Not botocore's own expiry, which it extends when IMDS gives credentials that are too old.
    expiration = imds.role_expiration()
    left = (expiration - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    if left > 0:
        yield Finding("role", OK, f"{found}, valid for {left / 3600:.1f} h")
    else:
        message = f"{found}, expired {-left / 60:.0f} min ago"
        yield Finding("role", ERROR, message, f"set the clock if it is wrong; else {REATTACH}")


def endpoint(config: Config) -> Iterator[Finding]:
    """Connect to EventBridge, and compare its clock with ours. Raises TattleError."""
    try:
        publisher = Publisher(config, INTERACTIVE_TIMEOUT)
        url = publisher.client.meta.endpoint_url
    except TattleError as error:
        if error.status == os.EX_CONFIG:
            yield failed("endpoint", error)
        else:
            yield Finding("endpoint", SKIPPED, "needs the region, and so the instance's identity")
        return
    host = urllib.parse.urlsplit(url).hostname or ""
    if config.proxy:
        yield Finding("name", SKIPPED, "the proxy resolves it")
    else:
        try:
            addresses = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
        except OSError as error:
            message = f"{host} does not resolve: {error.strerror}"
            advice = (
                f"look at /etc/resolv.conf, and in a VPC at enableDnsSupport: getent hosts {host}"
            )
            yield Finding("name", ERROR, message, advice)
            return
        yield Finding("name", OK, f"{host} resolves to {', '.join(sorted(addresses)[:3])}")
    ahead = seconds_ahead(publisher, INTERACTIVE_TIMEOUT)
    yield Finding("endpoint", OK, f"{url} answers")
    if ahead is not None:
        message = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} EventBridge's"
        if abs(ahead) < CLOCK_TOLERANCE:
            yield Finding("clock", OK, message)
        else:
            yield Finding("clock", ERROR, message, "set the clock: sudo chronyc makestep")


def buses(config: Config) -> Iterator[Finding]:
    """See to it that each event bus exists: EventBridge takes events for one that does not."""
    try:
        publisher = Publisher(config, INTERACTIVE_TIMEOUT)
        publisher.prepared_client()
    except TattleError:
        yield Finding("bus", SKIPPED, "needs the instance's identity and its role")
        return
    for bus in config.buses():
        name = bus or "default"
        try:
            doubt = publisher.verify_bus(bus)
        except TattleError as error:
            yield failed("bus", error)
            continue
        if doubt is None:
            yield Finding("bus", OK, f"{name} in {publisher.region}")
        else:
            message = f"can't be sure that {name} exists; events for it are sent: {doubt}"
            advice = DESCRIBE if doubt.status == os.EX_NOPERM else doubt.advice
            yield Finding("bus", WARNING, message, advice)


def send(config: Config) -> Iterator[Finding]:
    """Publish an event to each event bus that is configured. Raises TattleError."""
    publisher = Publisher(config, INTERACTIVE_TIMEOUT)
    for bus in config.buses():
        entry = {
            "Time": datetime.datetime.now(datetime.timezone.utc),
            "Source": config.source,
            "Resources": [publisher.resource],
            "DetailType": DETAIL_TYPE,
            "Detail": json.dumps({"hostname": own_hostname()}),
            **({"EventBusName": bus} if bus else {}),
        }
        try:
            event_id = publisher.send(entry)
        except TattleError as error:
            yield failed("send", error)
        else:
            message = f"`{DETAIL_TYPE}` to event bus {bus or 'default'} in {publisher.region}"
            yield Finding("send", OK, f"{message}: event id {event_id}")
