"""A stand-in for pam_exec(8): runs a hook just as modules/pam_exec/pam_exec.c of Linux-PAM does.

It runs inside a throwaway instance as `/usr/bin/python3 -IS -c SOURCE`, so it needs nothing but
the standard library. Its process stands for sshd's: the hook's parent, the same one at open and
close. It stays until it is killed: otherwise its session would be over. It reads requests from
stdin, a line of JSON each, and answers each with one. A request is a list of jobs, run at the same
time: {"command": [path, argument, …], "environment": [[name, value], …], "stdout": false}. Texts
carry bytes as surrogates. The environment is a list, since PAM's may hold a name twice, which
execve(2) takes and os.execve can't give.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

LIBC = ctypes.CDLL(None)
EXEC_FAILED = 127


def vector(strings: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    """A C array of strings with NULL at its end."""
    return (ctypes.c_char_p * (len(strings) + 1))(*map(os.fsencode, strings), None)


def start(job: dict[str, Any]) -> tuple[int, int | None]:
    """Fork and execute one hook; its process id and the pipe with its output, or None."""
    environment = vector([f"{name}={value}" for name, value in job["environment"]])
    command = vector(job["command"])
    path = os.fsencode(job["command"][0])
    # PAM_MODUTIL_PIPE_FD and PAM_MODUTIL_NULL_FD: stdin at its end, output nowhere or to a pipe
    stdin, writer = os.pipe()
    os.close(writer)
    reader, output = os.pipe() if job["stdout"] else (None, os.open(os.devnull, os.O_WRONLY))
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(stdin, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            os.setsid()
            LIBC.execve(path, command, environment)
        finally:
            os._exit(EXEC_FAILED)
    os.close(stdin)
    os.close(output)
    return pid, reader


def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs at the same time; their results in the same order."""
    results: list[dict[str, Any]] = []
    running: dict[int, dict[str, Any]] = {}
    for job in jobs:
        result: dict[str, Any] = {"started": time.monotonic(), "output": ""}
        pid, result["reader"] = start(job)
        running[pid] = result
        results.append(result)
    for result in results:
        reader = result.pop("reader")
        if reader is not None:  # as pam_exec does: up to the end of file, then the status
            with open(reader, "rb") as output:
                result["output"] = os.fsdecode(output.read())
    while running:
        pid, status, usage = os.wait4(-1, 0)
        if pid in running:
            result = running.pop(pid)
            result["seconds"] = time.monotonic() - result["started"]
            result["pid"] = pid
            result["returncode"] = (
                -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            )
            result["cpu_seconds"] = usage.ru_utime + usage.ru_stime
            result["max_rss_kib"] = usage.ru_maxrss
    return results


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
    while True:
        signal.pause()
