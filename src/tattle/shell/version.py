"""Which tattle this is, and what it runs on."""

from __future__ import annotations

import sys

from tattle import __version__
from tattle.aws.version import BOTOCORE


def version() -> str:
    """Return tattle's version and build, and Python's and botocore's versions."""
    build = getattr(sys.modules["__main__"], "BUILD", "none")  # in the archive's first member
    python = ".".join(map(str, sys.version_info[:3]))
    return f"tattle {__version__}, build {build[:12]}, Python {python}, botocore {BOTOCORE}"
