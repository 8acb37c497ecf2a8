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
ROLES = "latest/meta-data/iam/security-credentials/"

ELSEWHERE = "not on EC2: set `resource` and `region` in /etc/tattle.conf"
OPTIONS = "aws ec2 modify-instance-metadata-options --instance-id INSTANCE"
ENABLE = f"{OPTIONS} --http-endpoint enabled; {ELSEWHERE}"
# The token's packets may not be forwarded, unless the limit is raised.
HOP_LIMIT = f"in a container: {OPTIONS} --http-put-response-hop-limit 2; {ELSEWHERE}"
ATTACH = (
    "attach an instance profile: aws ec2 associate-iam-instance-profile --instance-id INSTANCE"
    " --iam-instance-profile Name=PROFILE"
)
REATTACH = "detach the instance profile from the instance, and attach it again"
TRUST = "the role's trust policy must let ec2.amazonaws.com assume it: tattle recipe iam-role.yaml"
FAULTY = "try again; if it stays so, look at what answers at that address"

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
        disabled = "is disabled by AWS_EC2_METADATA_DISABLED"
        return f"IMDS at {self.get_base_url()} {disabled if self._disabled else self._session.seen}"

    def advice(self) -> str:
        """Say what to do about it."""
        return "unset AWS_EC2_METADATA_DISABLED" if self._disabled else str(self._session.advice)

    def error(self, more: str = "") -> TattleError:
        """Return the error for what the last request came to."""
        return TattleError(self.fault() + more, os.EX_UNAVAILABLE, self.advice())

    def reachable(self) -> bool:
        """Tell whether the last request got an answer that was not a fault of IMDS itself."""
        return self._session.status in (200, 404)

    def failed(self) -> bool:
        """Tell whether the last request was made, and got no such answer."""
        return bool(self._session.advice) and not self.reachable()

    def get(self, path: str) -> str | None:
        """Return the text at a path, or None if there is none. Raises TattleError."""
        try:
            response = self._get_request(path, _is_fault, self._fetch_metadata_token())
        except (BotoCoreError, ValueError, *BOTOCORE_GIVES_UP) as error:
            raise self.error() from error
        return None if response.status_code == 404 else cast(str, response.text)

    def identity(self) -> IdentityDocument:
        """Return the instance's identity document. Raises TattleError."""
        text = self.get(IDENTITY)
        if text is None:
            raise self.error()
        self._session.advice = FAULTY
        try:
            document = json.loads(text)
            missing = [name for name in NEEDED if not document.get(name)]
        except (ValueError, AttributeError):
            raise self.error(" with no identity document") from None
        if missing:
            raise self.error(f" with an identity document without {', '.join(missing)}")
        malformed = [name for name, form in NEEDED.items() if not _is(form, document[name])]
        if malformed:
            raise self.error(f" with an identity document whose {malformed[0]} is malformed")
        return cast(IdentityDocument, document)

    def _get_credentials(self, role_name: str, token: str | None = None) -> Any:
        credentials = super()._get_credentials(role_name, token)
        given, advice = "malformed ones", REATTACH
        if isinstance(credentials, dict):
            code = credentials.get("Code", "Success")
            if code != "Success":
                given = f"none: {code}: {credentials.get('Message')}"
                advice = TRUST if "AssumeRole" in str(code) else REATTACH
            elif self._are_whole(credentials):
                return credentials
        self._session.seen = f"asked for the credentials of the role {role_name} gives {given}"
        self._session.advice = advice
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
    """An HTTP session that remembers what the last request came to, and what to do about it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.status = 0
        self.seen = "was not asked"
        self.advice = ""

    def send(self, request: Any) -> Any:
        self.status = 0
        try:
            response = self._session.send(request)
        except (ConnectTimeoutError, ReadTimeoutError):
            self.seen = "does not answer (not on EC2? hop limit too small for a container?)"
            self.advice = HOP_LIMIT
            raise
        except BotoCoreError:
            self.seen, self.advice = "can't be reached (not on EC2?)", ENABLE
            raise
        self.status = response.status_code
        path = request.url.partition("/latest/")[2]
        self.seen = f"answers {self.status} to {request.method} {path}"
        self.advice = FAULTY
        if self.status == 403:
            self.seen += " (is the instance metadata service enabled?)"
            self.advice = ENABLE
        elif self.status == 404:
            self.advice = ATTACH if request.url.endswith(ROLES) else ELSEWHERE
        return response


def _is(form: Callable[[str], object], value: object) -> bool:
    return isinstance(value, str) and bool(form(value))


def _is_fault(response: Any) -> bool:
    return response.status_code != 404 and (response.status_code != 200 or not response.content)
