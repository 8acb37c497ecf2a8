"""The spool: accepted events on disk until EventBridge has them.

One file a record, named so that names sort by the time of acceptance. A record is complete when it
has its name: a temporary name, fsync, rename, fsync of the folder. records.py is the other end.

Imported on the login's path: only what the interpreter has loaded by then.
"""

import os
import stat
import time

from tattle import EX_NOPERM, TattleError

PATH = "/var/spool/tattle"
LIMIT = 100_000  # records: about 400 MB of disk and two days of a login every two seconds
TEMPORARY = ".accepting-"


def trusted(path: str) -> str:
    """Return the path if only root and this user can have put there, or exchanged, what it names.

    Every folder on the way and every symbolic link's target counts; in a sticky folder nobody can
    exchange what is ours. Raises OSError if something does not exist, TattleError if somebody else
    could write.
    """
    whole = ""
    for part in path.strip("/").split("/"):
        parent, whole = whole or "/", whole + "/" + part
        status = os.lstat(whole)
        mode = status.st_mode
        open_to_all = mode & 0o022 and not mode & stat.S_ISVTX and not stat.S_ISLNK(mode)
        if status.st_uid not in (0, os.geteuid()) or open_to_all:
            raise TattleError(f"{whole} belongs to or can be written by somebody else", EX_NOPERM)
        if stat.S_ISLNK(mode):
            whole = trusted(os.path.join(parent, os.readlink(whole)))
    return whole


def private_folder(path: str) -> int:
    """Open a folder that is this user's alone, made on first use, and return its descriptor.

    Held open, it can't be exchanged under us. Raises OSError or TattleError.
    """
    trusted(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    else:
        parent = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        user = "root" if os.geteuid() == 0 else "you"
        raise TattleError(f"{path} must belong to {user}, with mode 0700", EX_NOPERM)
    return fd


class Spool:
    """The spool's folder, held open. Raises OSError or TattleError if it is not root's alone."""

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        self.fd = private_folder(path)

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
            os.fsync(self.fd)
        except OSError:
            for half in (TEMPORARY + name, name):
                try:
                    os.unlink(half, dir_fd=self.fd)
                except OSError:
                    pass  # the one that is not there
            raise
        finally:
            os.close(file)
        return name

    def lock(self) -> bool:
        """Become the one deliverer, unless somebody is."""
        import fcntl

        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
