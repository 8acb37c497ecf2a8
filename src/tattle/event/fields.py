"""The event's `detail`: the fields of a session event, in the order that the site asks for.

A session and the identity document become JSON; ssh-keygen is asked about keys.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tattle.login.pam import Session, age

if TYPE_CHECKING:
    from tattle.event.identity import IdentityDocument

DEFAULT = ("username", "remote_host", "session")
ABSENT = object()  # the field has no meaning here and is left out; None becomes null
KEYGEN = "/usr/bin/ssh-keygen"
KEYGEN_SECONDS = 5  # it takes some milliseconds


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
    own = os.fsencode(os.uname().nodename).decode(errors="backslashreplace")
    return session.context.get("TATTLE_HOST", own)


def duration(session: Session) -> object:
    """Return the whole seconds since the session's process started, once it has closed."""
    if session.state != "closed":
        return ABSENT
    seconds = age(session)
    return None if seconds is None else int(seconds)


def auth_method(session: Session) -> str | None:
    """Return the methods that let the user in, as sshd names them: `publickey,password`."""
    return ",".join(line.partition(" ")[0] for line in _auth_info(session)) or None


def key_fingerprint(session: Session) -> str | None:
    """Return what `ssh-keygen -l` prints for the key that let the user in: `SHA256:…`."""
    for line in _auth_info(session):
        method, _, key = line.partition(" ")
        if method in ("publickey", "hostbased"):
            return fingerprint(key)
    return None


@functools.lru_cache(maxsize=1024)
def fingerprint(key: str) -> str | None:
    """Return the SHA256 fingerprint of a public key or certificate `type base64`, if it is one.

    ssh-keygen(1) says what it is: it knows the same types as the sshd beside it. Of a certificate
    it prints the fingerprint of the key that it certifies. It takes milliseconds.
    """
    try:
        done = subprocess.run(
            [KEYGEN, "-lf", "-"],
            input=" ".join(key.split()[:2]) + "\n",
            capture_output=True,
            text=True,
            env={},
            timeout=KEYGEN_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    printed = re.fullmatch(r"\d+ (SHA256:[A-Za-z0-9+/]{43}) .*\n", done.stdout)
    return printed[1] if printed else None


def connection(session: Session) -> dict[str, object] | None:
    """Return both ends of the connection, from sshd's SSH_CONNECTION, ssh(1)."""
    try:
        host, port, local_host, local_port = session.context[
            "TATTLE_UNVERIFIED_SSH_CONNECTION"
        ].split()
        return {
            "remote_host": host,
            "remote_port": int(port),
            "local_host": local_host,
            "local_port": int(local_port),
        }
    except (KeyError, ValueError):
        return None


def rfc3339(session: Session) -> str | None:
    """Return the time at which the session opened or closed, to the millisecond, in UTC."""
    ns = session.context.get("TATTLE_TIME")
    if ns is None:
        return None
    seconds, rest = divmod(int(ns), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 10**6:03d}Z"


def _auth_info(session: Session) -> list[str]:
    return session.context.get("TATTLE_UNVERIFIED_SSH_AUTH_INFO_0", "").splitlines()


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
}
FROM_SSHD: dict[str, Callable[[Session], object]] = {
    "auth_method": auth_method,
    "key_fingerprint": key_fingerprint,
    "connection": connection,
}
FROM_INSTANCE = {
    "private_ip": "privateIp",
    "availability_zone": "availabilityZone",
    "instance_type": "instanceType",
    "image_id": "imageId",
}
