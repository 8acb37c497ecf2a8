"""What `pam_exec` says of a session: from its environment block to a record, and back.

`pam_exec` hands a command the PAM environment, to which a user may have added anything
(~/.pam_environment), followed by items of its own in a fixed order. That order and PAM_TYPE's place
at the end hold for Linux-PAM 1.1.7 (2013) to 1.7.2 (2026): modules/pam_exec/pam_exec.c.

Imported on the login's path: nothing but what the interpreter has loaded by then.
"""

import posix

ITEMS = (b"PAM_SERVICE", b"PAM_USER", b"PAM_TTY", b"PAM_RHOST", b"PAM_RUSER", b"PAM_TYPE", b"")
TYPES = (b"\0PAM_TYPE=open_session\0", b"\0PAM_TYPE=close_session\0")
STATES = {"open_session": "opened", "close_session": "closed"}


def usage_error(message: str, advice: str) -> Exception:
    """Return a TattleError. (Its module is imported only where there is one.)"""
    from tattle.errors import TattleError

    return TattleError(message, posix.EX_USAGE, advice)


def trusted_block(environ: bytes) -> bytes:
    """Return the end of an environment block (NUL-terminated NAME=value): what pam_exec wrote.

    Raises TattleError if that is not exactly what pam_exec writes when a session opens or closes.
    """
    block = environ[environ.rfind(b"\0PAM_SERVICE=") + 1 :]
    names = [variable.partition(b"=")[0] for variable in block.split(b"\0")]
    ordered = names == [name for name in ITEMS if name in names]
    if not ordered or b"PAM_TYPE" not in names or b"\0PAM_USER=\0" in block:
        message = f"refused: not an environment that pam_exec makes: {names!r}"
        raise usage_error(message, "in a shell: unset PAM_SERVICE")
    if names[:2] != [*ITEMS[:2]] or not block.endswith(TYPES):
        message = f"refused: neither open_session nor close_session: {block!r}"
        raise usage_error(message, "the PAM line must begin with `session`")
    return block


class Session:
    """A session that opened or closed.

    `pam` holds the PAM items as text by name, without those that were not set. `context` holds what
    only the hook could know, by the names that hook.py gives it, without what it did not know.
    """

    def __init__(self, pam: "dict[str, str]", context: "dict[str, str]") -> None:
        kind = pam.get("PAM_TYPE", "")
        if kind not in STATES:
            found = f"PAM_TYPE is {kind[:40]!r}" if kind else "no PAM_TYPE"
            message = f"{found}: expected open_session or close_session"
            raise usage_error(message, "set PAM_TYPE=open_session")
        if not pam.get("PAM_USER"):
            message = "no PAM_USER: whose session is it?"
            raise usage_error(message, "set PAM_USER to the user's name")
        self.state = STATES[kind]
        self.pam = pam
        self.context = context


def parse(variables: bytes, context: "dict[str, str] | None" = None) -> Session:
    """Return the session that NUL-terminated NAME=value variables, a record, tell of.

    Bytes that are not UTF-8 are kept visible as \\xNN. Raises TattleError if it is no session.
    """
    pam, ours = {}, context or {}
    for variable in variables.split(b"\0"):
        name, _, value = variable.decode(errors="backslashreplace").partition("=")
        if name.startswith("PAM_"):
            pam[name] = value
        elif name:
            ours[name] = value
    return Session(pam, ours)


def causer(record: bytes) -> bytes:
    """Return who brought a session about: the caller of su or sudo, else whose session it is."""
    variables = dict(variable.partition(b"=")[::2] for variable in record.split(b"\0"))
    return variables.get(b"PAM_RUSER") or variables.get(b"PAM_USER", b"")


def is_whole(record: bytes) -> bool:
    """Tell whether a record has all its bytes.

    After a power cut it may end early or have NULs in place of a part, since nobody waits until it
    is on disk. TATTLE_BOOT is its last variable; that of tattle 1.1, which did wait, was not.
    """
    return record.endswith(b"\0") and b"\0TATTLE_BOOT=" in record and b"\0\0" not in record


def age(session: Session) -> "float | None":
    """Return the seconds since the session's process started, if the hook could tell."""
    try:
        uptime = int(session.context["TATTLE_UPTIME"]) / 1e9
        started = int(session.context["TATTLE_PARENT_START"]) / posix.sysconf("SC_CLK_TCK")
    except (KeyError, ValueError, OverflowError):
        return None
    return max(0.0, uptime - started)
