"""The part of the environment that `pam_exec` wrote itself.

`pam_exec` hands a command the PAM environment, to which a user may have added anything
(~/.pam_environment), followed by items of its own in a fixed order. That order and PAM_TYPE's place
at the end hold for Linux-PAM 1.1.7 (2013) to 1.7.2 (2026): modules/pam_exec/pam_exec.c.

Imported on the login's path: short, and nothing but the interpreter's built-ins.
"""

from tattle import EX_USAGE, TattleError

ITEMS = (b"PAM_SERVICE", b"PAM_USER", b"PAM_TTY", b"PAM_RHOST", b"PAM_RUSER", b"PAM_TYPE", b"")
TYPES = (b"\0PAM_TYPE=open_session\0", b"\0PAM_TYPE=close_session\0")


def trusted_block(environ: bytes) -> bytes:
    """Return the end of an environment block (NUL-terminated NAME=value): what pam_exec wrote.

    Raises TattleError if that is not exactly what pam_exec writes when a session opens or closes.
    """
    block = environ[environ.rfind(b"\0PAM_SERVICE=") + 1 :]
    names = [variable.partition(b"=")[0] for variable in block.split(b"\0")]
    if names != [name for name in ITEMS if name in names] or b"\0PAM_USER=\0" in block:
        raise TattleError(f"refused: not an environment that pam_exec makes: {names!r}", EX_USAGE)
    if names[:2] != [*ITEMS[:2]] or not block.endswith(TYPES):
        raise TattleError(f"refused: neither open_session nor close_session: {block!r}", EX_USAGE)
    return block
