"""Which tattle this is, and what it runs on."""

from __future__ import annotations

import sys

from botocore import __version__ as botocore_version

from tattle import __version__


def version() -> str:
    """Return tattle's version and build, and Python's and botocore's versions."""
    build = getattr(sys.modules["__main__"], "BUILD", "none")  # in the archive's front door
    python = ".".join(map(str, sys.version_info[:3]))
    return f"tattle {__version__}, build {build[:12]}, Python {python}, botocore {botocore_version}"
