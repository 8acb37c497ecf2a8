"""The spool: accepted events on disk until EventBridge has them.

One file a record, named so that names sort by the time of acceptance. A record is whole when it has
its name: it is written under a temporary one and renamed. Whoever delivers, and not the login, has
it on disk: sync(). delivery/records.py reads it.

Imported on the login's path: nothing but what the interpreter has loaded by then.
"""

import posix
import time

from tattle.login.pam import causer

PATH = "/var/spool/tattle"
EMERGENCY_PATH = "/run/tattle-spool"  # where PATH can't be written; a reboot empties it
# Records: about 8 MB of memory. Each user may fill half of what the others have left.
EMERGENCY_LIMIT = 2000
FREE_BYTES = 4 * 1024**2  # to leave to others, or a twentieth of a small file system
FREE_FILES = 256  # inodes, or a twentieth
READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK  # a FIFO would hold up who opens it
TEMPORARY = ".accepting-"
REJECTED = "rejected"
STANDBY = ".standby"  # locked by the standby, who is named in it; modified at its last heartbeat
STANDBY_SILENT_SECONDS = 3.0  # without a heartbeat until hooks no longer rely on the standby


def only_root_writes(status: posix.stat_result) -> bool:
    """Tell whether this is a directory of root's that nobody else can write to."""
    return status.st_uid == 0 and status.st_mode & 0o170022 == 0o40000


def is_record(name: str) -> bool:
    """Tell whether a file's name is that of a record: 20 digits of nanoseconds, a process id."""
    accepted, _, process = name.partition("-")
    return len(accepted) == 20 and accepted.isdigit() and process.isdigit()


def accepted_at(name: str) -> float:
    """Return the seconds since the epoch at which a record was accepted."""
    return int(name[:20]) / 1e9


class Spool:
    """A spool's directory, held open, made on first use.

    Raises OSError if there can't be such a directory, TattleError if it is not this user's alone.
    """

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        try:
            self.fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW)
            above = ("/", "/var", "/var/spool") if path == PATH else ("/", "/run")
            status = posix.fstat(self.fd)
            ready = only_root_writes(status) and not status.st_mode & 0o77
            ready = ready and all(only_root_writes(posix.lstat(directory)) for directory in above)
        except OSError:
            ready = False
        if not ready:
            from tattle.trust import private_directory

            self.fd = private_directory(path)

    def accept(self, record: bytes) -> str:
        """Store a record and return its name. Raises OSError if that fails.

        No fsync, no login waits for a disk. If the machine loses power before sync(), the name may
        be there without the bytes: pam.is_whole().
        """
        self.check_room(record)
        name = f"{time.time_ns():020d}-{posix.getpid()}"
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL
        file = posix.open(TEMPORARY + name, flags, 0o600, dir_fd=self.fd)
        try:
            try:
                while record:
                    record = record[posix.write(file, record) :]
            finally:
                posix.close(file)
            posix.rename(TEMPORARY + name, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            try:
                posix.unlink(TEMPORARY + name, dir_fd=self.fd)
            except OSError:
                pass  # stale, it is rejected
            raise
        return name

    def check_room(self, record: bytes = b"") -> None:
        """Raise OSError rather than fill what others need. At no cost that grows with the spool."""
        if self.path == EMERGENCY_PATH:
            names = posix.listdir(self.fd)
            left = EMERGENCY_LIMIT - len(names)
            if left <= 0:
                raise OSError(f"{EMERGENCY_LIMIT} records are waiting")
            user = causer(record)
            if left <= len(names) and left <= self.records_of(user, names):
                raise OSError(f"{user!r} has used up a share of it")
            return
        # Free to root: users can fill what is free to them.
        disk = posix.statvfs(self.fd)
        free = disk.f_bfree * disk.f_frsize
        if free < min(FREE_BYTES, disk.f_blocks * disk.f_frsize // 20):
            raise OSError(f"the disk is full: {free} bytes are free")
        if disk.f_ffree < min(FREE_FILES, disk.f_files // 20):  # 0 where there is no limit
            raise OSError(f"the disk is full: {disk.f_ffree} inodes are free")

    def read(self, name: str) -> bytes:
        """Return a file's bytes, of no symbolic link, and without a wait. Raises OSError."""
        with open(posix.open(name, READ, dir_fd=self.fd), "rb") as file:
            return file.read()

    def records_of(self, user: bytes, names: "list[str]") -> int:
        """Return how many of these records are of sessions that this user brought about."""
        count = 0
        for name in filter(is_record, names):
            try:
                count += causer(self.read(name)) == user
            except OSError:
                pass  # delivered in the meantime
        return count

    def sync(self, names: "list[str]") -> None:
        """Have these records on disk: their bytes, their names, and the spool's own.

        Raises OSError.
        """
        from errno import EINVAL

        for name in (*names, ".", ".."):
            try:
                file = posix.open(name, READ, dir_fd=self.fd)
            except OSError:
                continue  # delivered in the meantime, or no record
            try:
                posix.fsync(file)
            except OSError as error:
                if error.errno != EINVAL:  # a FIFO has nothing to write
                    raise
            finally:
                posix.close(file)

    def standby(self) -> "tuple[int, bytes]":
        """Return id and start time of a process that shows a standby's heartbeat; 0 if none does.

        A standby has what is accepted now on disk within a second, and delivers if the deliverer
        does not. Its lock is not asked: whoever stops a hook that has it for a moment, as a user
        can with su's, would keep everybody from delivering. Raises OSError.
        """
        try:
            fd = posix.open(STANDBY, READ, dir_fd=self.fd)
        except FileNotFoundError:
            return 0, b""
        try:
            fields = posix.read(fd, 100).split()  # FileLock.acquire() writes it; 1.1 writes nothing
            beat = posix.fstat(fd).st_mtime
        finally:
            posix.close(fd)
        named = len(fields) > 1 and fields[0].isdigit()
        if not named or abs(time.time() - beat) >= STANDBY_SILENT_SECONDS:
            return 0, b""
        return int(fields[0]), fields[1]

    def holds(self, name: str) -> bool:
        """Tell whether there is such a file."""
        try:
            posix.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True
