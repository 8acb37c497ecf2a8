"""Sessions, and the records and environment blocks that they are read from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from tattle.errors import TattleError
from tattle.login.pam import ITEMS, Session, parse

CONTEXT = (b"TATTLE_TIME", b"TATTLE_UPTIME", b"TATTLE_PARENT", b"TATTLE_PARENT_START")
SAID_BY_SSHD = (b"TATTLE_UNVERIFIED_SSH_CONNECTION", b"TATTLE_UNVERIFIED_SSH_AUTH_INFO_0")

thorough = settings(max_examples=200, deadline=None)

values = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers().map(lambda number: str(number).encode()),
    st.sampled_from([b"9" * 30, b"9" * 500, "²".encode(), b"-1", b"\x01" * 50_000]),
).map(lambda value: value.replace(b"\0", b""))
names = st.one_of(
    st.sampled_from(
        [*ITEMS, *CONTEXT, *SAID_BY_SSHD, b"TATTLE_BOOT", b"PAM_X", b"LD_PRELOAD", b""]
    ),
    st.binary(max_size=8).map(lambda name: name.replace(b"\0", b"").replace(b"=", b"")),
)
blocks = st.lists(st.tuples(names, values), max_size=12).map(
    lambda variables: b"".join(name + b"=" + value + b"\0" for name, value in variables)
)
sessions = st.builds(
    lambda block, kind, user, when: parse(
        block + b"TATTLE_TIME=%d\0PAM_USER=%b\0PAM_TYPE=%b\0" % (when, user or b"u", kind)
    ),
    blocks,
    st.sampled_from([b"open_session", b"close_session"]),
    values,
    st.integers(0, 4_000_000_000 * 10**9),
)


def block(**items: str | bytes) -> bytes:
    """An environment block as pam_exec writes it: its items in their order."""
    return b"".join(b"%b=%b\0" % (name.encode(), os.fsencode(items[name])) for name in items)


def session(
    kind: str = "open_session", context: dict[str, str] | None = None, **pam: str
) -> Session:
    return Session({"PAM_TYPE": kind, "PAM_USER": "ubuntu", **pam}, context or {})


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the TattleError that it raises."""
    try:
        return function(*arguments)
    except TattleError as refusal:
        return refusal
