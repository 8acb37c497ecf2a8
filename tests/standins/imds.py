"""A strict IMDSv2 server: what 169.254.169.254 is on an instance where version 2 is required.

The fault 429 is what it answers a host that asks too often: DataBiosphere/toil#688,
aws/aws-sdk-js-v3#4867.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
"""

from __future__ import annotations

import datetime
import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from standins import ROLE_CREDENTIALS, RoleCredentials
from standins.server import Answer, Asked, Settings, StandIn

TOKEN_PATH = "/latest/api/token"
TOKEN_HEADER = "x-aws-ec2-metadata-token"
TOKEN_TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
LONGEST_TOKEN_TTL_SECONDS = 21600

IDENTITY_PATH = "/latest/dynamic/instance-identity/document"
CREDENTIALS_PATH = "/latest/meta-data/iam/security-credentials/"
TAGS_PATH = "/latest/meta-data/tags/instance/"
SERVICES_PATH = "/latest/meta-data/services/"


def identity_document(**changes: Any) -> dict[str, Any]:
    """An instance's identity document; a change to None leaves that key out.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
    """
    document: dict[str, Any] = {
        "accountId": "012345678901",
        "architecture": "x86_64",
        "availabilityZone": "us-east-1b",
        "billingProducts": None,
        "devpayProductCodes": None,
        "marketplaceProductCodes": None,
        "imageId": "ami-0abcdef1234567890",
        "instanceId": "i-abc123abc123",
        "instanceType": "t4g.micro",
        "kernelId": None,
        "pendingTime": "2026-01-02T03:04:05Z",
        "privateIp": "10.0.0.5",
        "ramdiskId": None,
        "region": "us-east-1",
        "version": "2017-09-30",
    }
    for key, value in changes.items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    return document


def role_credentials(
    keys: RoleCredentials = ROLE_CREDENTIALS, lifetime: float = 6 * 3600, **changes: Any
) -> dict[str, Any]:
    """What security-credentials/ROLE answers; `lifetime` in seconds from now, negative if expired.
    A change to None leaves that key out."""
    document: dict[str, Any] = {
        "Code": "Success",
        "LastUpdated": _timestamp(time.time()),
        "Type": "AWS-HMAC",
        "AccessKeyId": keys.access_key_id,
        "SecretAccessKey": keys.secret_access_key,
        "Token": keys.session_token,
        "Expiration": _timestamp(time.time() + lifetime),
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


ROLE_NOT_ASSUMABLE = {
    "Code": "AssumeRoleUnauthorizedAccess",
    "Message": "EC2 cannot assume the role tattle. Please see documentation at "
    "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html"
    "#troubleshoot_iam-ec2_errors-info-doc.",
    "LastUpdated": "2026-01-02T03:04:05Z",
}
"""The credentials of a role whose trust policy leaves EC2 out."""


@dataclass(frozen=True)
class ImdsSettings(Settings):
    fault_path: str = "/"
    """Only paths that begin so are faulty."""
    document: Mapping[str, Any] | bytes = field(default_factory=identity_document)
    """The identity document; bytes are served as they are."""
    role: str | None = "tattle"
    """The instance profile's role; None for an instance without one."""
    credentials: Mapping[str, Any] | bytes | None = None
    """What the role's path answers; None: good ones, valid for six hours from each request."""
    tags: Mapping[str, str] | None = None
    """The instance's tags; None where tags are not enabled in the metadata."""
    partition: str | None = "aws"
    domain: str | None = "amazonaws.com"
    """Both below services/; None where there is no such path."""


@dataclass(frozen=True)
class ImdsRequest:
    """One request, as it was and as it was answered."""

    method: str
    path: str
    status: int
    """0: it ran into a fault that is no answer."""
    headers: Mapping[str, str]

    @property
    def had_token(self) -> bool:
        """It carried a token, valid or not."""
        return TOKEN_HEADER in self.headers


class Imds(StandIn[ImdsSettings]):
    banner = "EC2ws"

    def __init__(self, *sockets: socket.socket, **settings: Any) -> None:
        super().__init__(ImdsSettings(**settings), *sockets)
        self._tokens: dict[str, float] = {}  # to the time.monotonic() of its expiry
        self._requests: list[ImdsRequest] = []

    def requests(self) -> list[ImdsRequest]:
        with self._changed:
            return list(self._requests)

    def clear(self) -> None:
        super().clear()
        with self._changed:
            self._requests.clear()

    def hangs_at_connect(self) -> bool:
        return super().hangs_at_connect() and self.settings.fault_path == "/"

    def answer(self, asked: Asked) -> Answer:
        try:
            answer = self._answer(asked)
        except Exception:
            self._record(asked, 0)
            raise
        self._record(asked, answer.status)
        self.sleep(self.settings.delay)
        return answer

    def _record(self, asked: Asked, status: int) -> None:
        with self._changed:
            self._requests.append(ImdsRequest(asked.method, asked.path, status, asked.headers))
            self._changed.notify_all()

    def _answer(self, asked: Asked) -> Answer:
        fault = self.settings.fault if asked.path.startswith(self.settings.fault_path) else None
        if fault is not None:
            return self.fail(fault)
        if asked.path == TOKEN_PATH:
            return self._issue_token(asked)
        if asked.method != "GET":
            return self.error(405)
        with self._changed:
            expiry = self._tokens.get(asked.headers.get(TOKEN_HEADER, ""), 0.0)
        if expiry <= time.monotonic():
            return self.error(401)
        return self._look_up(asked.path)

    def error(self, status: int) -> Answer:
        page = f"<html><head><title>{status} - {HTTPStatus(status).phrase}</title></head></html>"
        return Answer(status, page.encode(), "text/html")

    def _issue_token(self, asked: Asked) -> Answer:
        if asked.method != "PUT":
            return self.error(405)
        if "x-forwarded-for" in asked.headers:
            return self.error(403)  # someone's open proxy, not the instance
        ttl = asked.headers.get(TOKEN_TTL_HEADER, "")
        if not (ttl.isdecimal() and 1 <= int(ttl) <= LONGEST_TOKEN_TTL_SECONDS):
            return self.error(400)
        token = secrets.token_urlsafe(40) + "=="
        with self._changed:
            self._tokens[token] = time.monotonic() + int(ttl)
        return Answer(200, token.encode(), headers={TOKEN_TTL_HEADER: ttl})

    def _look_up(self, path: str) -> Answer:
        if path == IDENTITY_PATH:
            return _text(self.settings.document)
        if path.startswith(CREDENTIALS_PATH):
            return self._look_up_role(path[len(CREDENTIALS_PATH) :])
        if path.startswith(TAGS_PATH) and self.settings.tags is not None:
            name = path[len(TAGS_PATH) :]
            if name in self.settings.tags:
                return _text(self.settings.tags[name].encode())
        services = {"partition": self.settings.partition, "domain": self.settings.domain}
        value = services.get(path[len(SERVICES_PATH) :]) if path.startswith(SERVICES_PATH) else None
        return self.error(404) if value is None else _text(value.encode())

    def _look_up_role(self, role: str) -> Answer:
        if self.settings.role is None or role not in ("", self.settings.role):
            return self.error(404)
        if not role:
            return _text(self.settings.role.encode())
        credentials = self.settings.credentials
        return _text(role_credentials() if credentials is None else credentials)


def _text(content: Mapping[str, Any] | bytes) -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content, indent=2).encode()
    return Answer(200, body)


def _timestamp(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
