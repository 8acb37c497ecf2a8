"""Sleep until there is work: the kernel's signal that a directory has changed, fcntl(2) F_NOTIFY.

Older than inotify(7), and in Python's standard library.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable

# A record that gets its name; a record or WAKE that is made, or is moved here from elsewhere
CHANGES = fcntl.DN_CREATE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT
POLL_SECONDS = 0.25  # between two looks, where the kernel has no such signal
# What a hook needs to end after its record is there, while the login waits: where the deliverer
# begins at once, both want the same CPUs, and the hook takes 1.4 times as long as the bare
# interpreter instead of 1.2 (`./build.sh bench`, 2 CPUs).
HOOK_SECONDS = 0.002


class Alarm:
    """Watches directories, given by their descriptors, from the moment it is made."""

    def __init__(self, directories: Iterable[int]) -> None:
        # Blocked, it waits for sleep(); unblocked it would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
        self._longest = float("inf")
        for fd in directories:
            try:
                # Opened once more: os.listdir() closes a copy of its descriptor, and to close any
                # copy ends the notification.
                own = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                fcntl.fcntl(own, fcntl.F_NOTIFY, CHANGES)
            except OSError:
                self._longest = POLL_SECONDS

    def sleep(self, seconds: float) -> bool:
        """Sleep for so long at most; tell whether something has changed since the last sleep.

        It may have, where the kernel does not say.
        """
        changed = signal.sigtimedwait([signal.SIGIO], max(0.0, min(seconds, self._longest)))
        if changed:
            time.sleep(HOOK_SECONDS)
        return changed is not None or self._longest < seconds
