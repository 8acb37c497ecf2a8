"""The event's `detail`: the fields of a session event, in the order that the site asks for.

A session and the identity document become JSON; ssh-keygen is asked about keys, id about users.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tattle.event.accounts import ACCOUNTS
from tattle.event.keys import certificate, fingerprint
from tattle.login.pam import Session, age

if TYPE_CHECKING:
    from tattle.event.identity import IdentityDocument

DEFAULT = ("username", "remote_host", "session")
ABSENT = object()  # the field has no meaning here and is left out; None becomes null
WITNESSES = ("logind", "process")  # TATTLE_REPORTED_BY, where it was not the hook


def detail(
    session: Session,
    fields: tuple[str, ...],
    document: IdentityDocument,
    tag: Callable[[str], str | None],
    trusts_sshd: Callable[[Session], bool],
) -> str:
    """Return the JSON text of `detail`.

    tag gives an instance tag's value, or None; trusts_sshd tells whether no user can have
    set what sshd says of the connection.
    """
    values: dict[str, object] = {}
    trusted = any(field in FROM_SSHD for field in fields) and trusts_sshd(session)
    for field in fields:
        if field.startswith("tag:"):
            value: object = tag(field[4:])
            value = ABSENT if value is None else value
        elif field in FROM_SSHD:
            value = FROM_SSHD[field](session) if trusted else None
        elif field in FROM_INSTANCE:
            value = document.get(FROM_INSTANCE[field])
        else:
            value = FROM_SESSION[field](session)
        if value is not ABSENT:
            values[field] = value
    return json.dumps(values)


def event_id(session: Session) -> str:
    """Return 32 hexadecimal digits that name this event, however often it is delivered."""
    return _digest(sorted({**session.pam, **session.context}.items()))


def session_id(session: Session) -> str | None:
    """Return 32 hexadecimal digits, the same for a session's opened and closed event."""
    process = [session.context.get(f"TATTLE_{part}") for part in ("BOOT", "PARENT", "PARENT_START")]
    return _digest(process) if all(process) else None


def hostname(session: Session) -> str:
    """Return the host name at that moment; for a record of tattle 1.1, the machine's own."""
    return session.context.get("TATTLE_HOST") or own_hostname()


def own_hostname() -> str:
    """Return the machine's host name as it is now."""
    return os.fsencode(os.uname().nodename).decode(errors="backslashreplace")


def reported_by(session: Session) -> str:
    """Return who saw that the session opened or closed: `pam`, `logind` or `process`."""
    witness = session.context.get("TATTLE_REPORTED_BY")
    return witness if witness in WITNESSES else "pam"


def duration(session: Session) -> object:
    """Return the whole seconds since the session's process started, once it has closed."""
    if session.state != "closed":
        return ABSENT
    seconds = age(session)
    return None if seconds is None else int(seconds)


def auth_method(session: Session) -> str | None:
    """Return the methods that let the user in, as sshd names them: `publickey,password`."""
    return ",".join(line.partition(" ")[0] for line in _auth_info(session)) or None


def of_key(session: Session, ask: Callable[[str], object]) -> object:
    """Return what ssh-keygen says of the key or certificate that let the user in."""
    key = _key(session)
    return ask(key) if key else None


def connection(session: Session) -> dict[str, object] | None:
    """Return both ends of the connection, from sshd's SSH_CONNECTION, ssh(1)."""
    ends = session.context.get("TATTLE_UNVERIFIED_SSH_CONNECTION", "").split()
    try:
        host, port, local_host, local_port = ends
        if "UNKNOWN" in (host, local_host):  # sshd's word for what is no IP: a socket of AF_UNIX
            return None
        return {
            "remote_host": host,
            "remote_port": int(port),
            "local_host": local_host,
            "local_port": int(local_port),
        }
    except ValueError:
        return None


def rfc3339(session: Session) -> str | None:
    """Return the time at which the session opened or closed, to the millisecond, in UTC."""
    ns = session.context.get("TATTLE_TIME")
    if ns is None:
        return None
    seconds, rest = divmod(int(ns), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 10**6:03d}Z"


def _auth_info(session: Session) -> list[str]:
    """Return sshd's lines `METHOD KEY` or `METHOD TEXT`. A text may hold any other separator."""
    lines = session.context.get("TATTLE_UNVERIFIED_SSH_AUTH_INFO_0", "").split("\n")
    return [line for line in lines if line]


def _key(session: Session) -> str | None:
    """Return the first key that let the user in, `type base64` and maybe more."""
    for line in _auth_info(session):
        method, _, key = line.partition(" ")
        if method in ("publickey", "hostbased"):
            return key
    return None


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


FROM_SESSION: dict[str, Callable[[Session], object]] = {
    "username": lambda session: session.pam["PAM_USER"],
    "remote_host": lambda session: session.pam.get("PAM_RHOST", ""),
    "session": lambda session: session.state,
    "service": lambda session: session.pam.get("PAM_SERVICE"),
    "tty": lambda session: session.pam.get("PAM_TTY"),
    "remote_user": lambda session: session.pam.get("PAM_RUSER"),
    "hostname": hostname,
    "time": rfc3339,
    "event_id": event_id,
    "session_id": session_id,
    "duration": duration,
    "reported_by": reported_by,
    "uid": lambda session: ACCOUNTS.uid(session.pam["PAM_USER"]),
    "groups": lambda session: ACCOUNTS.groups(session.pam["PAM_USER"]),
}
FROM_SSHD: dict[str, Callable[[Session], object]] = {
    "auth_method": auth_method,
    "key_fingerprint": lambda session: of_key(session, fingerprint),
    "certificate": lambda session: of_key(session, certificate),
    "connection": connection,
}
FROM_INSTANCE = {
    "private_ip": "privateIp",
    "availability_zone": "availabilityZone",
    "instance_type": "instanceType",
    "image_id": "imageId",
}
