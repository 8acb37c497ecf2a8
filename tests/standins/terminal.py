"""Runs a command on a terminal of its own, until it ends. (pty.spawn() stops earlier: when the
terminal is hung up, which util-linux's login does to have it alone.)"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios

master, slave = os.openpty()  # the slave stays open here, or the last output would be lost
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.execvp(sys.argv[1], sys.argv[1:])
inputs = [0, master]


def copy(fd: int) -> bool:
    """Hand on what can be read; tell whether there was anything."""
    try:
        read = os.read(fd, 65536)
    except OSError:
        return False  # hung up, and open again in a moment
    os.write(1 if fd == master else master, read)
    return read != b""


ended = status = 0
while not ended:
    ended, status = os.waitpid(pid, os.WNOHANG)
    for fd in select.select(inputs, [], [], 0 if ended else 0.05)[0]:
        if not copy(fd) and fd == 0:
            inputs.remove(fd)
while select.select([master], [], [], 0)[0] and copy(master):
    pass
sys.exit(os.waitstatus_to_exitcode(status))
