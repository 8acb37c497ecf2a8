"""A stand-in for syslogd: a datagram socket that keeps every line it gets, to the byte."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path
from typing import NamedTuple

LONGEST_LINE_BYTES = 65536
AUTHPRIV = 10  # facility, RFC 5424 section 6.2.1
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

# <priority>[timestamp ]identifier[[pid]]: message, as syslog(3) writes it
_LINE = re.compile(
    rb"<(\d{1,3})>(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?([^ :\[]+)(?:\[(\d+)\])?: ?(.*)",
    re.DOTALL,
)


class Line(NamedTuple):
    raw: bytes
    facility: int | None
    """None, like the rest, where a line isn't written as syslog(3) does."""
    severity: str | None
    identifier: str | None
    pid: int | None
    message: str
    """Undecodable bytes as surrogates."""


class Syslog:
    """Listens on a socket at `path` while entered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._stopped = False
        self._lines: list[Line] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Syslog:
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader
            self._stopped = True
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        with self._socket:
            while not self._stopped:
                self._socket.recv(1, socket.MSG_PEEK)  # waits
                self._receive()

    def _receive(self) -> None:
        """Keep what was written by now."""
        with self._changed, contextlib.suppress(BlockingIOError):
            while not self._stopped:
                raw = self._socket.recv(LONGEST_LINE_BYTES, socket.MSG_DONTWAIT)
                self._lines.append(parse(raw))
                self._changed.notify_all()

    def lines(self, identifier: str | None = None) -> list[Line]:
        """The lines so far, of one identifier if given."""
        with self._changed:
            self._receive()
            return [line for line in self._lines if identifier in (None, line.identifier)]

    def wait_for(self, text: str, timeout: float = 10.0) -> Line:
        """The first line whose message contains that text; AssertionError if none comes in time."""

        def find() -> Line | None:
            return next((line for line in self._lines if text in line.message), None)

        with self._changed:
            line = self._changed.wait_for(find, timeout)
            assert line, f"no line with {text!r} within {timeout} s; last: {self._lines[-10:]}"
            return line

    def clear(self) -> None:
        """Forget the lines so far, those that nobody has read yet too."""
        with self._changed:
            self._receive()
            self._lines.clear()


def parse(raw: bytes) -> Line:
    parts = _LINE.fullmatch(raw.rstrip(b"\0\n"))
    if not parts:
        return Line(raw, None, None, None, None, raw.decode(errors="surrogateescape"))
    priority, identifier, pid, message = parts.groups()
    facility, severity = divmod(int(priority), 8)
    return Line(
        raw=raw,
        facility=facility,
        severity=SEVERITIES[severity],
        identifier=identifier.decode(errors="surrogateescape"),
        pid=int(pid) if pid else None,
        message=message.decode(errors="surrogateescape"),
    )
