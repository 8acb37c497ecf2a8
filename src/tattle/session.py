"""A session that opened or closed: what PAM said of it, and what only that moment knew."""

from __future__ import annotations

from tattle import EX_USAGE, TattleError

STATES = {"open_session": "opened", "close_session": "closed"}


class Session:
    """A session that opened or closed, and the moment at which tattle was told.

    `pam` holds the PAM items as text by name, without those that were not set. `moment` holds what
    only that moment knew, by the names that hook.py gives it, and None for what it did not.
    """

    def __init__(self, pam: dict[str, str], moment: dict[str, str]) -> None:
        kind = pam.get("PAM_TYPE", "")
        if kind not in STATES:
            told = f"PAM_TYPE is {kind[:40]!r}" if kind else "no PAM_TYPE"
            raise TattleError(f"{told}: expected open_session or close_session", EX_USAGE)
        if not pam.get("PAM_USER"):
            raise TattleError("no PAM_USER: whose session is it?", EX_USAGE)
        self.state = STATES[kind]
        self.pam = pam
        self.moment = moment


def parse(variables: bytes, moment: dict[str, str] | None = None) -> Session:
    """Return the session that NUL-terminated NAME=value variables tell of.

    Bytes that are not UTF-8 are kept visible as \\xNN. Raises TattleError if it is no session.
    """
    pam, ours = {}, moment or {}
    for variable in variables.split(b"\0"):
        name, _, value = variable.decode(errors="backslashreplace").partition("=")
        if name.startswith("PAM_"):
            pam[name] = value
        elif name:
            ours[name] = value
    return Session(pam, ours)
