"""What a probe of `tattle check` finds."""

from __future__ import annotations

from typing import NamedTuple

from tattle.errors import TattleError

OK = "ok"
WARNING = "warning"
ERROR = "error"
SKIPPED = "skipped"


class Finding(NamedTuple):
    """One thing that was looked at. `id` and `severity` are for machines, and do not change."""

    id: str
    severity: str
    message: str
    advice: str = ""
    service: str = ""  # the PAM service, where it is about one


def failed(id_: str, error: TattleError) -> Finding:
    """Return the finding that a check failed, with the advice of whoever raised the error."""
    return Finding(id_, ERROR, str(error), error.advice)
