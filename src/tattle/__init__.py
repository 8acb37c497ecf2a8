"""tattle reports SSH logins and logouts on an EC2 instance to Amazon EventBridge.

Here is what every module may need. It runs inside the login, so it imports nothing that the
interpreter has not loaded by then.
"""

__version__ = "1.0.0"


class TattleError(Exception):
    """A fault that a person can act on: one line of text and an exit status from sysexits(3)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


# sysexits(3)
EX_USAGE = 64  # no or unsupported PAM_TYPE, no PAM_USER
EX_DATAERR = 65  # this event can never be sent
EX_UNAVAILABLE = 69  # IMDS or EventBridge can't be reached
EX_SOFTWARE = 70  # a defect of tattle
EX_TEMPFAIL = 75  # throttled, 5xx, not delivered yet
EX_NOPERM = 77  # no role, or not allowed
EX_CONFIG = 78  # configuration
