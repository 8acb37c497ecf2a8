"""Who this instance is: the identity document, as far as tattle reads it. No network.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
"""

from __future__ import annotations

from typing import TypedDict

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
