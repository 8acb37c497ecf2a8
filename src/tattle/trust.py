"""What only root can have put there: files and directories that root may trust."""

from __future__ import annotations

import errno
import os
import stat

from tattle.errors import TattleError

LINKS = 40  # that a path may lead through, path_resolution(7)


def trusted(path: str, links: int = LINKS) -> str:
    """Return what the path names, its links followed, if only root and this user can have put it
    there or exchanged it.

    Every directory on the way and every symbolic link's target counts; in a sticky directory nobody
    can exchange what is ours. Raises OSError if something does not exist, TattleError if somebody
    else could write.
    """
    resolved = ""
    for part in path.strip("/").split("/"):
        parent, resolved = resolved or "/", resolved + "/" + part
        status = os.lstat(resolved)
        mode = status.st_mode
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        writable = mode & 0o022 and not sticky and not stat.S_ISLNK(mode)
        if status.st_uid not in (0, os.geteuid()) or writable:
            raise wrong_owner(resolved, "belongs to or can be written by somebody else", "go-w")
        if stat.S_ISLNK(mode):
            if not links:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            resolved = trusted(os.path.join(parent, os.readlink(resolved)), links - 1)
    return resolved


def wrong_owner(path: str, problem: str, mode: str) -> TattleError:
    """Return the error for a file that somebody else could have written; mode is for chmod(1)."""
    advice = f"sudo chown root {path} && sudo chmod {mode} {path}"
    return TattleError(f"{path} {problem}", os.EX_NOPERM, advice)


def private_directory(path: str) -> int:
    """Open a directory that is this user's alone, made on first use, and return its descriptor.

    Held open, it can't be exchanged under us. No fsync: a login may wait. Raises OSError or
    TattleError.
    """
    trusted(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        message = f"{path} is not a directory: {error.strerror}"
        raise TattleError(message, os.EX_NOPERM, f"sudo rm {path}") from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        if os.geteuid() == 0:
            raise wrong_owner(path, "must belong to root, with mode 0700", "700")
        message = f"{path} must belong to you, with mode 0700"
        raise TattleError(message, os.EX_NOPERM, f"sudo rm -r {path}")
    return fd
