"""The spool: accepted events on disk until EventBridge has them.

One file a record, named so that names sort by the time of acceptance. A record is complete when it
has its name: a temporary name, fsync, rename, fsync of the folder. What is no record goes to
`rejected/`.

Imported on the login's path: only what the interpreter has loaded by then.
"""

import os
import stat
import time

from tattle import EX_NOPERM, TattleError, log

PATH = "/var/spool/tattle"
LIMIT = 100_000  # records: about 400 MB of disk and two days of a login every two seconds
REJECTED = "rejected"
TEMPORARY = ".accepting-"
STALE = 60  # seconds after which a temporary file is what a killed hook left behind


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


def is_record(name: str) -> bool:
    """Tell whether a file's name is that of a record: 20 digits of nanoseconds, a process id."""
    moment, _, process = name.partition("-")
    return len(moment) == 20 and moment.isdigit() and process.isdigit()


def accepted_at(name: str) -> float:
    """Return the seconds since the epoch at which a record was accepted."""
    return int(name[:20]) / 1e9


def private_folder(path: str) -> int:
    """Open a folder that is this user's alone, made on first use, and return its descriptor.

    Held open, it can't be exchanged under us. Raises OSError or TattleError.
    """
    trusted(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
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
        except BaseException:
            os.unlink(TEMPORARY + name, dir_fd=self.fd)
            raise
        finally:
            os.close(file)
        os.fsync(self.fd)
        return name

    def waiting(self) -> "list[str]":
        """Return the names of the records, oldest first; set aside what is none."""
        records = []
        for name in os.listdir(self.fd):
            if is_record(name):
                records.append(name)
            elif name != REJECTED and (not name.startswith(TEMPORARY) or self._age(name) > STALE):
                try:
                    self.reject(name, "no record of tattle's")
                except OSError as error:
                    log(f"can't set aside {self.path}/{name}: {error}")
        return sorted(records)

    def read(self, name: str) -> bytes:
        """Return a record. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(name, "rb", opener=lambda path, _: os.open(path, flags, dir_fd=self.fd)) as file:
            return file.read()

    def remove(self, names: "list[str]") -> None:
        """Forget records that EventBridge has; durably, so that a power cut brings none back."""
        for name in names:
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass  # by somebody's hand, or by an earlier try that got no further
        if names:
            os.fsync(self.fd)

    def reject(self, name: str, reason: str) -> None:
        """Set aside what can never be sent, for a person to look at, and log it."""
        try:
            os.mkdir(REJECTED, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        os.rename(name, f"{REJECTED}/{name}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        log(f"set aside {self.path}/{REJECTED}/{name}: {reason}")

    def lock(self) -> bool:
        """Become the one deliverer, unless somebody is."""
        import fcntl

        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Let another be the deliverer."""
        import fcntl

        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _age(self, name: str) -> float:
        try:
            return time.time() - os.lstat(name, dir_fd=self.fd).st_mtime
        except FileNotFoundError:
            return 0  # accepted in the meantime

    def has(self, name: str) -> bool:
        """Tell whether a record is there."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True
