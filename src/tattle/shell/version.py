"""Which tattle this is, and what it runs on."""

from __future__ import annotations

import datetime
import sys

from tattle import RELEASED, __version__
from tattle.aws.version import BOTOCORE


def version() -> str:
    """Return tattle's version and build, and Python's and botocore's versions."""
    build = getattr(sys.modules["__main__"], "BUILD", "none")  # in the archive's first member
    python = ".".join(map(str, sys.version_info[:3]))
    on = f"Python {python}, botocore {BOTOCORE}"
    return f"tattle {__version__} of {RELEASED}, build {build[:12]}, {on}"


def age() -> str:
    """Return how old this version is, in words; "" if the clock says that it is to come."""
    days = (datetime.date.today() - datetime.date.fromisoformat(RELEASED)).days
    return f"; {days} days old" if days >= 0 else ""
