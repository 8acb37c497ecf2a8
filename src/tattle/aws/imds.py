"""IMDSv2: who this instance is, and why its role has no credentials.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
botocore gets the credentials themselves, by the same settings. Never version 1, nor by a proxy.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from typing import NoReturn, cast

from botocore.exceptions import InvalidIMDSEndpointError
from botocore.session import Session
from botocore.utils import is_valid_uri, resolve_imds_endpoint_mode
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError
from urllib3.exceptions import TimeoutError as Urllib3Timeout

from tattle.aws.http import ANSWER_BYTES, NoPortError, TooLongError, cause, pool_manager
from tattle.errors import TattleError
from tattle.event.identity import LONGEST, NEEDED, IdentityDocument

ENDPOINTS = {"ipv4": "http://169.254.169.254/", "ipv6": "http://[fd00:ec2::254]/"}
DISABLED = "AWS_EC2_METADATA_DISABLED"  # botocore's variable
TOKEN = "api/token"
TOKEN_HEADER = "x-aws-ec2-metadata-token"
TOKEN_SECONDS = 21600  # the most that IMDS gives
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
IDENTITY = "dynamic/instance-identity/document"
TAG = "meta-data/tags/instance/"
PARTITION = "meta-data/services/partition"
DOMAIN = "meta-data/services/domain"
ROLES = "meta-data/iam/security-credentials/"

NO_ANSWER = "does not answer (not on EC2? hop limit too small for a container?)"
NOT_ON_EC2 = "not on EC2: set `resource` and `region` in /etc/tattle.conf"
OPTIONS = "aws ec2 modify-instance-metadata-options --instance-id INSTANCE"
ENABLE = f"{OPTIONS} --http-endpoint enabled; {NOT_ON_EC2}"
# The token's packets may not be forwarded, unless the limit is raised.
HOP_LIMIT = f"in a container: {OPTIONS} --http-put-response-hop-limit 2; {NOT_ON_EC2}"
ATTACH = (
    "attach an instance profile: aws ec2 associate-iam-instance-profile --instance-id INSTANCE"
    " --iam-instance-profile Name=PROFILE"
)
REATTACH = "detach the instance profile from the instance, and attach it again"
TRUST = "the role's trust policy must let ec2.amazonaws.com assume it: tattle recipe iam-role.yaml"
MALFORMED = "try again; if it stays so, look at what answers at that address"

THROTTLED = "nothing: it is tried again. If it lasts, find out who asks IMDS so often"
# Who has them can be seen by root only: ss(8).
PORTS = "a user holds all ports, who? sudo ss -tanpe"

NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")  # of a partition or a domain
LONGEST_TAG = 256  # characters, says EC2
CREDENTIALS = ("AccessKeyId", "SecretAccessKey", "Token")


class Imds:
    """A client for IMDSv2, with botocore's settings. Its methods raise TattleError."""

    def __init__(self, session: Session) -> None:
        setting = session.get_config_variable
        mode = resolve_imds_endpoint_mode(session)
        self.url: str = setting("ec2_metadata_service_endpoint") or ENDPOINTS[mode]
        if not is_valid_uri(self.url):
            raise InvalidIMDSEndpointError(endpoint=self.url)
        self._attempts = max(1, setting("metadata_service_num_attempts"))
        self._http = pool_manager(setting("metadata_service_timeout"))
        self._token = ""

    def get(self, path: str) -> str | None:
        """Return the text at a path, None if there is nothing."""
        if os.environ.get(DISABLED, "").lower() == "true":
            self._fail(f"is disabled by {DISABLED}", f"unset {DISABLED}")
        if not self._token:
            asked = {f"{TOKEN_HEADER}-ttl-seconds": str(TOKEN_SECONDS)}
            token = self._request("PUT", TOKEN, asked)
            if token is None:
                self._fail(f"answers 404 to PUT {TOKEN}", NOT_ON_EC2)
            if not valid_in_header(token):
                self._fail(f"answers 200 to PUT {TOKEN} with no token", MALFORMED)
            self._token = token
        return self._request("GET", path, {TOKEN_HEADER: self._token})

    def identity(self) -> IdentityDocument:
        """Return the instance's identity document."""
        text = self.get(IDENTITY)
        if text is None:
            self._fail(f"answers 404 to GET {IDENTITY}", NOT_ON_EC2)
        found = f"answers 200 to GET {IDENTITY} with"
        try:
            fields = json.loads(text).items()
        except (ValueError, AttributeError, RecursionError):
            self._fail(f"{found} no identity document", MALFORMED)
        # What looks like no field of EC2's is as if it weren't there.
        ours = {key: one for key, one in fields if isinstance(one, str) and len(one) <= LONGEST}
        for name, form in NEEDED.items():
            if not re.fullmatch(form, ours.get(name, "")):
                self._fail(f"{found} an identity document without a valid {name}", MALFORMED)
        return cast(IdentityDocument, ours)

    def name(self, path: str) -> str | None:
        """Return the partition or domain at a path, None if there is nothing."""
        text = self.get(path)
        if text is not None and not NAME.fullmatch(text):
            self._fail(f"answers 200 to GET {path} with no name", MALFORMED)
        return text

    def tag(self, name: str) -> str | None:
        """Return the value of an instance tag, None where tags are off or there is no such tag."""
        value = self.get(TAG + name)
        return None if value is None or len(value) > LONGEST_TAG else value

    def role_expiration(self) -> datetime.datetime:
        """Return until when the role's credentials are valid; the error says why there are none."""
        roles = self.get(ROLES)
        if roles is None:
            self._fail(f"answers 404 to GET {ROLES}", ATTACH, os.EX_NOPERM)
        role = roles.split("\n")[0]
        try:
            answer = json.loads(self.get(ROLES + role) or "")
            code = str(answer.get("Code", "Success"))
            if code != "Success":
                advice = TRUST if "AssumeRole" in code else REATTACH
                reason = f"for the role {role}: {code}: {answer.get('Message')}"
                self._fail(f"gives no credentials {reason}", advice, os.EX_NOPERM)
            if not all(valid_in_header(answer[part]) for part in CREDENTIALS):
                raise ValueError
            expiration = datetime.datetime.strptime(answer["Expiration"], "%Y-%m-%dT%H:%M:%SZ")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self._fail(f"gives malformed credentials for the role {role}", REATTACH, os.EX_NOPERM)
        return expiration.replace(tzinfo=datetime.timezone.utc)

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """Return the text of an answer, None if there is nothing: 404."""
        status, body = self._answer(method, path, headers)
        if status == 404:
            return None
        if status != 200:
            self._token = ""  # if it has expired, the next one won't have
            message, advice = f"answers {status} to {method} {path}", MALFORMED
            if status == 429:
                self._fail(f"{message}: asked too often", THROTTLED, os.EX_TEMPFAIL)
            if status == 403:
                message, advice = f"{message} (is the instance metadata service enabled?)", ENABLE
            self._fail(message, advice)
        return body.decode(errors="replace")

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return status and body, of the last attempt where those before failed."""
        url = f"{self.url.rstrip('/')}/latest/{path}"
        for left in reversed(range(self._attempts)):
            try:
                # Not inflated: a body of one MB may be a thousand. None of IMDS's is compressed.
                answer = self._http.request(
                    method, url, headers=headers, decode_content=False, preload_content=False
                )
                body = answer.read(ANSWER_BYTES)
                answer.release_conn()
                if not left or answer.status < 500:  # a retry can't help
                    break
            except HTTPError as error:
                if cause(error, NoPortError):
                    self._fail("can't be reached: no local port is free", PORTS)
                if cause(error, TooLongError):
                    self._fail(f"answers {method} {path} without end", MALFORMED)
                # urllib3 calls a refused connection a time-out, too.
                refused = isinstance(error, NewConnectionError)
                if not left or (method == "PUT" and isinstance(error, ReadTimeoutError)):
                    if isinstance(error, Urllib3Timeout) and not refused:
                        self._fail(NO_ANSWER, HOP_LIMIT)
                    self._fail("can't be reached (not on EC2?)", ENABLE)
        return answer.status, body

    def _fail(self, problem: str, advice: str, status: int = os.EX_UNAVAILABLE) -> NoReturn:
        raise TattleError(f"IMDS at {self.url} {problem}", status, advice)


def valid_in_header(text: object) -> bool:
    """Tell whether a part of credentials can be sent in a header."""
    return isinstance(text, str) and bool(text) and text.isascii() and text.isprintable()
