"""The spool: accepted events on disk until EventBridge has them.

One file a record, named so that names sort by the time of acceptance. A record is complete when it
has its name: a temporary name, fsync, rename, fsync of the folder. records.py is the other end.

Imported on the login's path: short, and only what the interpreter has loaded by then.
"""

import os
import time

PATH = "/var/spool/tattle"
ABOVE = ("/", "/var", "/var/spool")
LIMIT = 100_000  # records: about 400 MB of disk and two days of a login every two seconds
TEMPORARY = ".accepting-"


class Spool:
    """The spool's folder, held open. Raises OSError or TattleError if it is not root's alone."""

    def __init__(self) -> None:
        try:
            self.fd = os.open(PATH, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            kept = [(os.fstat(self.fd), 0o40077), *((os.lstat(f), 0o40022) for f in ABOVE)]
        except OSError:
            kept = []
        # Folders, root's, and not open to others. Whatever else they are is a longer story.
        if not kept or any(s.st_uid or s.st_mode & (0o170000 | m) != 0o40000 for s, m in kept):
            from tattle.files import private_folder

            self.fd = private_folder(PATH)

    def accept(self, record: bytes) -> str:
        """Put a record on disk, durably, and return its name. Raises OSError if that fails."""
        if len(os.listdir(self.fd)) >= LIMIT:
            raise OSError(f"{LIMIT} records are waiting")
        name = f"{time.time_ns():020d}-{os.getpid()}"
        file = os.open(
            TEMPORARY + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd
        )
        try:
            while record:
                record = record[os.write(file, record) :]
            os.fsync(file)
            os.rename(TEMPORARY + name, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            try:
                os.unlink(TEMPORARY + name, dir_fd=self.fd)
            except OSError:
                pass  # records.py sets it aside
            raise
        finally:
            os.close(file)
        try:
            os.fsync(self.fd)
        except OSError as error:  # a deliverer may have it by now: no second one beside it
            from tattle.log import log

            log(f"can't be sure that an event is on disk: {error}")
        return name

    def lock(self) -> bool:
        """Become the one deliverer, unless somebody is."""
        import fcntl

        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
