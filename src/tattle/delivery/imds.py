"""IMDSv2: who this instance is, and why IMDS would not say.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
botocore's own fetcher does the requests, for the identity as for the credentials; never v1.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable
from typing import Any, TypedDict, cast

from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ReadTimeoutError
from botocore.session import Session
from botocore.utils import BadIMDSRequestError, InstanceMetadataFetcher, resolve_imds_endpoint_mode

from tattle.errors import TattleError

TIMEOUT = 1  # seconds for a connection, and for an answer
ATTEMPTS = 3
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
IDENTITY = "latest/dynamic/instance-identity/document"
TAG = "latest/meta-data/tags/instance/"
PARTITION = "latest/meta-data/services/partition"
DOMAIN = "latest/meta-data/services/domain"


# The document's fields that must be there, and how they look
NEEDED = {
    "accountId": re.compile(r"\d{12}").fullmatch,
    "instanceId": re.compile(r"[\w-]+").fullmatch,
    "region": re.compile(r"[a-z0-9]+(-[a-z0-9]+)+").fullmatch,
}
BOTOCORE_GIVES_UP = (InstanceMetadataFetcher._RETRIES_EXCEEDED_ERROR_CLS, BadIMDSRequestError)


class IdentityDocument(TypedDict, total=False):
    """The identity document, as far as tattle reads it; the first three are always there."""

    accountId: str
    instanceId: str
    region: str
    availabilityZone: str
    imageId: str
    instanceType: str
    privateIp: str


class Metadata(InstanceMetadataFetcher):  # type: ignore[misc]
    """botocore's fetcher, with a memory of what went wrong, which botocore would only log."""

    _session: Any

    def __init__(self, session: Session) -> None:
        setting = session.get_config_variable
        super().__init__(
            timeout=setting("metadata_service_timeout"),
            num_attempts=setting("metadata_service_num_attempts"),
            user_agent=session.user_agent(),
            config={
                "ec2_metadata_service_endpoint": setting("ec2_metadata_service_endpoint"),
                "ec2_metadata_service_endpoint_mode": resolve_imds_endpoint_mode(session),
                "ec2_metadata_v1_disabled": True,
            },
        )
        self._session = _Witness(self._session)
        self.expiration = ""  # of the role's credentials, as IMDS last said it

    def fault(self) -> str:
        """Say what the last request came to, for a person."""
        told = "is disabled by AWS_EC2_METADATA_DISABLED" if self._disabled else self._session.seen
        return f"IMDS at {self.get_base_url()} {told}"

    def reachable(self) -> bool:
        """Tell whether the last request got an answer that was not a fault of IMDS itself."""
        return self._session.status in (200, 404)

    def get(self, path: str) -> str | None:
        """Return the text at a path, or None if there is none. Raises TattleError."""
        try:
            response = self._get_request(path, _is_fault, self._fetch_metadata_token())
        except (BotoCoreError, ValueError, *BOTOCORE_GIVES_UP) as error:
            raise TattleError(self.fault(), os.EX_UNAVAILABLE) from error
        return None if response.status_code == 404 else cast(str, response.text)

    def identity(self) -> IdentityDocument:
        """Return the instance's identity document. Raises TattleError."""
        text = self.get(IDENTITY)
        if text is None:
            raise TattleError(self.fault(), os.EX_UNAVAILABLE)
        try:
            document = json.loads(text)
            missing = [name for name, form in NEEDED.items() if not _is(form, document.get(name))]
        except (ValueError, AttributeError):
            raise TattleError(
                f"{self.fault()} with no identity document", os.EX_UNAVAILABLE
            ) from None
        if missing:
            fault = f"{self.fault()} with an identity document without {', '.join(missing)}"
            raise TattleError(fault, os.EX_UNAVAILABLE)
        return cast(IdentityDocument, document)

    def _get_credentials(self, role_name: str, token: str | None = None) -> Any:
        credentials = super()._get_credentials(role_name, token)
        told = "malformed ones"
        if isinstance(credentials, dict):
            if credentials.get("Code", "Success") != "Success":
                told = f"none: {credentials['Code']}: {credentials.get('Message')}"
            elif self._are_whole(credentials):
                return credentials
        self._session.seen = f"asked for the credentials of the role {role_name} gives {told}"
        return {}

    def _are_whole(self, credentials: dict[str, object]) -> bool:
        texts = [credentials.get(name) for name in self._REQUIRED_CREDENTIAL_FIELDS]
        if not all(isinstance(t, str) and t and t.isascii() and t.isprintable() for t in texts):
            return False
        self.expiration = str(credentials["Expiration"])
        try:
            datetime.datetime.strptime(self.expiration, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            return False
        return True


class _Witness:
    """An HTTP session that remembers what the last request came to."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.status = 0
        self.seen = "was not asked"

    def send(self, request: Any) -> Any:
        self.status = 0
        try:
            response = self._session.send(request)
        except (ConnectTimeoutError, ReadTimeoutError):
            self.seen = "does not answer (not on EC2? hop limit too small for a container?)"
            raise
        except BotoCoreError:
            self.seen = "can't be reached (not on EC2?)"
            raise
        self.status = response.status_code
        path = request.url.partition("/latest/")[2]
        self.seen = f"answers {self.status} to {request.method} {path}"
        if self.status == 403:
            self.seen += " (is the instance metadata service enabled?)"
        return response


def _is(form: Callable[[str], object], value: object) -> bool:
    return isinstance(value, str) and bool(form(value))


def _is_fault(response: Any) -> bool:
    return response.status_code != 404 and (response.status_code != 200 or not response.content)
