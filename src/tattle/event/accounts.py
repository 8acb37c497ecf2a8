"""What the system's accounts, wherever they are kept, say of a user. id(1) asks.

A directory service that does not answer holds up neither us nor the next event.
"""

from __future__ import annotations

import subprocess
import time

ID = "/usr/bin/id"
ID_SECONDS = 3.0  # it takes milliseconds, or some hundred with a directory service
SILENT_SECONDS = 60.0  # not to ask again after it took longer


class Accounts:
    """The users' ids and groups, as they are when first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}
        self._ask_from = 0.0  # time.monotonic()

    def uid(self, user: str) -> int | None:
        """Return the user's number, None if it is not known."""
        output = self._ask("-u", user).strip()
        return int(output) if output.isdecimal() else None

    def groups(self, user: str) -> list[str] | None:
        """Return the names of the user's groups, the primary one first; None if not known."""
        return self._ask("-Gnz", user).split("\0")[:-1] or None

    def _ask(self, option: str, user: str) -> str:
        """Return what id prints; nothing if it fails or does not answer."""
        if (option, user) not in self._known and time.monotonic() >= self._ask_from:
            try:
                self._known[option, user] = subprocess.run(
                    [ID, option, "--", user],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="utf-8",
                    errors="backslashreplace",
                    env={},
                    timeout=ID_SECONDS,
                    check=True,
                ).stdout
            except subprocess.TimeoutExpired:
                self._ask_from = time.monotonic() + SILENT_SECONDS
            except (OSError, ValueError, subprocess.SubprocessError):
                pass
        return self._known.get((option, user), "")


ACCOUNTS = Accounts()
