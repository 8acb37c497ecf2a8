"""The spool: accepted events on disk until EventBridge has them.

One file a record, named so that names sort by the time of acceptance. A record is whole when it has
its name: it is written under a temporary one and renamed. Whoever delivers, and not the login, has
it on disk: sync(). What is no record is set aside in `rejected/`, and never fatal.

Imported on the login's path: nothing but what the interpreter has loaded by then.
"""

import posix
import time

PATH = "/var/spool/tattle"
EMERGENCY_PATH = "/run/tattle-spool"  # where PATH can't be written; a reboot empties it
EMERGENCY_LIMIT = 2000  # records: about 8 MB of memory
LATE_SECONDS = 60.0  # that a record may wait without anything being wrong
FREE_BYTES = 4 * 1024**2  # to leave to others, or a twentieth of a small file system
FREE_FILES = 256  # inodes, or a twentieth
TEMPORARY = ".accepting-"
STALE_SECONDS = 60  # after which a temporary file is what a killed hook left behind
REJECTED = "rejected"
DELIVERER = ".deliverer"  # locked (flock) by the deliverer; modified at its last sign of life
STANDBY = ".standby"  # the same, of the standby, which waits for the deliverer's lock
STANDBY_SILENT_SECONDS = 3.0  # without a sign of life until hooks no longer rely on the standby
FAULT = ".fault"  # what keeps events back
FAULT_NEW = ".fault.new"  # before it is complete
WAKE = ".wake"  # somebody wants the deliverer to try again now
OWN_FILES = (DELIVERER, STANDBY, FAULT, FAULT_NEW, WAKE)
OWN = (REJECTED, *OWN_FILES)


def log(message: str) -> None:
    """Write a line to the log, if that can be done: where no file can be opened, nor can this."""
    try:
        from tattle import errors  # most logins have nothing to say

        errors.log(message)
    except Exception:
        pass


def only_root_writes(status: posix.stat_result) -> bool:
    """Tell whether this is a folder of root's that nobody else can write to."""
    return status.st_uid == 0 and status.st_mode & 0o170022 == 0o40000


def is_record(name: str) -> bool:
    """Tell whether a file's name is that of a record: 20 digits of nanoseconds, a process id."""
    accepted, _, process = name.partition("-")
    return len(accepted) == 20 and accepted.isdigit() and process.isdigit()


def accepted_at(name: str) -> float:
    """Return the seconds since the epoch at which a record was accepted."""
    return int(name[:20]) / 1e9


class Spool:
    """A spool's folder, held open, made on first use.

    Raises OSError if there can't be such a folder, TattleError if it is not this user's alone.
    """

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        self.lock_fd = -1
        self.stuck: set[str] = set()  # not records, and could not be set aside
        try:
            self.fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW)
            above = ("/", "/var", "/var/spool") if path == PATH else ("/", "/run")
            status = posix.fstat(self.fd)
            ready = only_root_writes(status) and not status.st_mode & 0o77
            ready = ready and all(only_root_writes(posix.lstat(folder)) for folder in above)
        except OSError:
            ready = False
        if not ready:
            from tattle.trust import private_folder

            self.fd = private_folder(path)

    # Accepting: the login waits

    def accept(self, record: bytes) -> str:
        """Store a record and return its name. Raises OSError if that fails.

        No fsync, no login waits for a disk. If the machine loses power before sync(), the name may
        be there without the bytes: pam.is_whole().
        """
        self.check_room()
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
                pass  # stale, it is set aside
            raise
        return name

    def check_room(self) -> None:
        """Raise OSError rather than fill what others need. At no cost that grows with the spool."""
        if self.path == EMERGENCY_PATH:
            if len(posix.listdir(self.fd)) >= EMERGENCY_LIMIT:
                raise OSError(f"{EMERGENCY_LIMIT} records are waiting")
            return
        # Free to root: users can fill what is free to them.
        disk = posix.statvfs(self.fd)
        free = disk.f_bfree * disk.f_frsize
        if free < min(FREE_BYTES, disk.f_blocks * disk.f_frsize // 20):
            raise OSError(f"the disk is full: {free} bytes are free")
        if disk.f_ffree < min(FREE_FILES, disk.f_files // 20):  # 0 where there is no limit
            raise OSError(f"the disk is full: {disk.f_ffree} inodes are free")

    # Delivering: no login waits

    def lock(self, name: str = DELIVERER) -> bool:
        """Become the deliverer, or the standby, unless somebody is. Raises OSError.

        `lock_fd` is then the descriptor that holds the lock.
        """
        self.lock_fd = self._flock(name, shared=False)
        return self.lock_fd >= 0

    def is_locked(self, name: str) -> bool:
        """Tell whether somebody holds that lock. Raises OSError."""
        fd = self._flock(name, shared=True)  # so that those who ask don't see one another
        if fd >= 0:
            posix.close(fd)
        return fd < 0

    def _flock(self, name: str, shared: bool) -> int:
        """Return a descriptor that holds the lock, or -1."""
        import fcntl  # a file of its own on some distributions: not before the event is accepted

        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW
        fd = posix.open(name, flags, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            posix.close(fd)
            return -1
        return fd

    def silent_for(self, name: str) -> float:
        """Return the seconds since the last sign of life of who holds that lock."""
        sign = posix.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime
        return abs(time.time() - sign)

    def holds(self, name: str) -> bool:
        """Tell whether there is such a file."""
        try:
            posix.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def waiting(self) -> "list[str]":
        """Return the names of the records, oldest first; set aside what is not a record."""
        records = []
        for name in posix.listdir(self.fd):
            if is_record(name):
                records.append(name)
            elif name not in self.stuck and not self._belongs(name):
                try:
                    self.set_aside(name, "no record of tattle's")
                except OSError as error:
                    self.stuck.add(name)
                    log(f"can't set aside {self.path}/{name}: {error}")
        return sorted(records)

    def read(self, name: str) -> bytes:
        """Return a record. Raises OSError."""
        flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK
        with open(posix.open(name, flags, dir_fd=self.fd), "rb") as file:
            return file.read()

    def sync(self, names: "list[str] | None" = None) -> None:
        """Have these records, or all, on disk: the bytes, the names, and the spool's own name.

        Raises OSError.
        """
        from errno import EINVAL

        flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK
        records = filter(is_record, posix.listdir(self.fd)) if names is None else names
        for name in (*records, ".", ".."):
            try:
                file = posix.open(name, flags, dir_fd=self.fd)
            except OSError:
                continue  # delivered in the meantime, or no record
            try:
                posix.fsync(file)
            except OSError as error:
                if error.errno != EINVAL:  # a FIFO has nothing to write
                    raise
            finally:
                posix.close(file)

    def remove(self, names: "list[str]") -> None:
        """Remove files; durably, so that a power cut brings none back."""
        for name in names:
            try:
                posix.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass  # somebody removed it, or an earlier try did and then failed
        if names:
            posix.fsync(self.fd)

    def set_aside(self, name: str, reason: str) -> None:
        """Set aside what can never be sent, for a person to look at, and log it.

        Raises OSError if that can't be done.
        """
        try:
            posix.mkdir(REJECTED, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        try:
            posix.rename(name, f"{REJECTED}/{name}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return  # somebody was quicker
        posix.fsync(self.fd)
        log(f"set aside {self.path}/{REJECTED}/{name}: {reason}")

    def _belongs(self, name: str) -> bool:
        if name in OWN:
            return True
        try:
            age = time.time() - posix.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return True  # accepted in the meantime
        return name.startswith(TEMPORARY) and age < STALE_SECONDS
