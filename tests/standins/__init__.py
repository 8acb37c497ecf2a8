"""Stand-ins for what surrounds tattle on an EC2 instance: IMDS, EventBridge, PAM and syslog.

Each is strict where the real thing is strict, so that a client that passes here passes there; each
can be told, while it runs, to fail in the ways the real thing fails.
"""

from __future__ import annotations

from typing import NamedTuple


class RoleCredentials(NamedTuple):
    """The instance role's temporary credentials: IMDS hands them out, EventBridge knows them."""

    access_key_id: str
    secret_access_key: str
    session_token: str


ROLE_CREDENTIALS = RoleCredentials(
    access_key_id="ASIASTANDIN000EXAMPLE",
    secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYSTANDINKEY",
    session_token="IQoJb3JpZ2luX2VjE+stand/in//session=token",
)
