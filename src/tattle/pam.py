"""The PAM environment becomes a session event.

Imported on the login's path: nothing but the interpreter's built-ins.

`pam_exec` hands a command the PAM environment, to which a user may have added anything
(~/.pam_environment), followed by items of its own in a fixed order. That order and PAM_TYPE's
place at the end hold for Linux-PAM 1.1.7 (2013) to 1.7.2 (2026): modules/pam_exec/pam_exec.c,
call_exec().
"""

from tattle import EX_DATAERR, EX_USAGE, TattleError

ITEMS = (b"PAM_SERVICE", b"PAM_USER", b"PAM_TTY", b"PAM_RHOST", b"PAM_RUSER", b"PAM_TYPE")
SESSIONS = {"open_session": "opened", "close_session": "closed"}


def trusted_block(environ: bytes) -> bytes:
    """Return the end of an environment block (NUL-terminated NAME=value): what pam_exec wrote.

    Raises TattleError if that is not exactly what pam_exec writes.
    """
    block = environ[environ.rfind(b"\0PAM_SERVICE=") + 1 :]
    names = [variable.partition(b"=")[0] for variable in block.split(b"\0")]
    if names != [name for name in (*ITEMS, b"") if name in names] or names[-2:-1] != [b"PAM_TYPE"]:
        raise TattleError(f"refused: not an environment that pam_exec makes: {names!r}", EX_DATAERR)
    return block


class Session:
    """A session that opened or closed, and the moment at which tattle was told.

    `pam` holds the PAM items as text by name, without those that were not set. `moment` holds what
    only that moment knew, by the names that hook.py gives it, and None for what it did not.
    """

    def __init__(self, pam: "dict[str, str]", moment: "dict[str, str]") -> None:
        kind = pam.get("PAM_TYPE", "")
        if kind not in SESSIONS:
            told = f"PAM_TYPE is {kind[:40]!r}" if kind else "no PAM_TYPE"
            raise TattleError(f"{told}: expected open_session or close_session", EX_USAGE)
        if not pam.get("PAM_USER"):
            raise TattleError("no PAM_USER: whose session is it?", EX_USAGE)
        self.state = SESSIONS[kind]
        self.pam = pam
        self.moment = moment


def parse(variables: bytes, moment: "dict[str, str] | None" = None) -> Session:
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
