"""Who this instance is: the identity document, as far as tattle reads it. No network.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
"""

from __future__ import annotations

from typing import TypedDict, cast

REGION = r"[a-z0-9]+(-[a-z0-9]+)+"  # a pattern: there will be other regions
LONGEST = 64  # characters of a field
# The fields that must be there, and how they look
NEEDED = {"accountId": r"[0-9]{12}", "instanceId": r"i-[0-9a-f]{8,17}", "region": REGION}


class IdentityDocument(TypedDict, total=False):
    """The identity document; IMDS's client sees to it that the first three are there."""

    accountId: str
    instanceId: str
    region: str
    availabilityZone: str
    imageId: str
    instanceType: str
    privateIp: str


def known(document: IdentityDocument) -> IdentityDocument:
    """Return the document without fields that look like none of EC2's, as if they weren't there."""
    return cast(
        IdentityDocument, {name: value for name, value in document.items() if is_short(value)}
    )


def is_short(value: object) -> bool:
    """Tell whether a value is as long as a field's is at most."""
    return isinstance(value, str) and len(value) <= LONGEST
