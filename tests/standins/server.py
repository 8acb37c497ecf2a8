"""What the HTTP stand-ins share: listening, a thread per connection, faults, and settings that
change while they run.

The sockets are bound by the caller, so a stand-in can live in the test's own process and yet listen
in the network namespace of a throwaway instance (see `bind`).
"""

from __future__ import annotations

import ctypes
import gzip
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any, Generic, TypeVar

CLONE_NEWNET = 0x40000000  # sched.h
BACKLOG = 512  # connections; a burst of hooks must not be refused by accident
TRICKLE_SECONDS = 3.0  # between two bytes: shorter than most time-outs
RUBBISH = b"\x00<html>\xff not what was asked for"
BOMB_MB = 100
PEER_POLL_SECONDS = 0.05  # how soon a withheld answer notices that its client left

SettingsType = TypeVar("SettingsType", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """What every HTTP stand-in can be told. A fault is a number, answered as an HTTP status, or

    - "rubbish", "empty": 200 with a body that is no answer, or with none;
    - "refuse": nothing listens, and open connections are reset;
    - "hang": connections are accepted and never answered;
    - "close", "reset": a request is read, then the connection ends with FIN or with RST;
    - "trickle": a request is read, then an answer of a thousand bytes, one every three seconds;
    - "endless": 200 with a body that does not end;
    - "bomb": 200 with a body of a hundred kB that says it is gzip's, and is a hundred MB then.
    """

    fault: str | int | None = None
    delay: float = 0.0
    """Seconds between a request and its answer."""


@dataclass(frozen=True)
class Asked:
    """One HTTP request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case; a repeated header's values are joined by commas."""
    body: bytes
    arrived: float
    """time.monotonic() when the request was complete."""
    server_name: str | None
    """The name in the TLS handshake (SNI), None without TLS."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


class Unanswered(Exception):  # noqa: N818
    """One of Settings' faults, by name, instead of an answer."""


def bind(
    host: str,
    port: int = 0,
    network_namespace: str | os.PathLike[str] | None = None,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """A socket, TCP's by default, bound to host and port, not yet listening; in another network
    namespace if a path such as /proc/PID/ns/net is given (it stays where it was made)."""
    if network_namespace is None:
        return _bind(host, port, kind)

    def enter_and_bind() -> socket.socket:
        with open(network_namespace) as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return _bind(host, port, kind)

    with ThreadPoolExecutor(
        1
    ) as thread:  # setns concerns one thread, and this one ends right after
        return thread.submit(enter_and_bind).result()


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port == 0:
        # Only a port asked for by number survives the shutdown() and listen() of "refuse".
        with socket.socket(family) as scout:
            scout.bind((host, 0))
            port = scout.getsockname()[1]
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind((host, port))
    return bound


class StandIn(Generic[SettingsType]):
    """An HTTP/1.1 server with keep-alive. A context manager: it listens while entered."""

    banner = "stand-in"
    scheme = "http"
    faults = frozenset(
        {"rubbish", "empty", "refuse", "hang", "close", "reset", "trickle", "endless", "bomb"}
    )

    def __init__(self, settings: SettingsType, *sockets: socket.socket) -> None:
        self._initial = settings
        self._settings = settings
        self._sockets = sockets or (bind("127.0.0.1"),)
        self._changed = threading.Condition()  # guards everything below and what subclasses record
        self._generation = 0  # of the settings; a withheld answer is given up when it moves on
        self._listening = False
        self._stopped = False
        self._connections: set[socket.socket] = set()
        self._connection_count = 0

    # The surface for tests

    @property
    def url(self) -> str:
        host, port = self._sockets[0].getsockname()[:2]
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def settings(self) -> SettingsType:
        return self._settings

    def set(self, **changes: Any) -> None:
        """Change settings from now on; the others stay as they are."""
        with self._changed:
            self._apply(replace(self._settings, **changes))

    def reset(self) -> None:
        """Back to the settings it was made with; forget what was recorded."""
        with self._changed:
            self._apply(self._initial)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        with self._changed:
            self._connection_count = 0

    def connection_count(self) -> int:
        """Connections accepted so far, whether or not a request came over them."""
        with self._changed:
            return self._connection_count

    # For subclasses

    def answer(self, asked: Asked) -> Answer:
        """Answer one request, or raise Unanswered."""
        raise NotImplementedError

    def secure(self, connection: socket.socket) -> socket.socket:
        """The connection as HTTP is to be spoken over it; overridden for TLS."""
        return connection

    def hangs_at_connect(self) -> bool:
        return self._settings.fault == "hang"

    def fail(self, fault: str | int) -> Answer:
        """What a fault answers; raises Unanswered where that is nothing."""
        if isinstance(fault, int):
            return self.error(fault)
        if fault == "bomb":
            body = gzip.compress(bytes(2**20)) * BOMB_MB
            return Answer(200, body, headers={"Content-Encoding": "gzip"})
        if fault in ("rubbish", "empty"):
            return Answer(200, RUBBISH if fault == "rubbish" else b"")
        raise Unanswered(fault)

    def error(self, status: int) -> Answer:
        """An error as this service words it."""
        raise NotImplementedError

    def sleep(self, seconds: float) -> None:
        """Be slow, but not past the stand-in's end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)

    def now(self) -> float:
        """Seconds since the epoch on the stand-in's clock, for its Date header."""
        return time.time()

    def _apply(self, settings: SettingsType) -> None:
        fault = settings.fault
        if not (fault is None or isinstance(fault, int) or fault in self.faults):
            raise ValueError(f"unknown fault: {fault}")
        self._settings = settings
        self._generation += 1
        if settings.fault == "refuse":
            self._stop_listening()
            for connection in self._connections:
                _reset(connection)
        else:
            self._listen()
        self._changed.notify_all()

    # Running

    def __enter__(self: StandInType) -> StandInType:
        with self._changed:
            self._apply(self._settings)
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._stop_listening()
            for connection in self._connections:
                _reset(connection)
            self._changed.notify_all()
        for listener in self._sockets:
            listener.close()

    def _listen(self) -> None:
        if not self._listening and not self._stopped:
            for listener in self._sockets:
                listener.listen(BACKLOG)
            self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            for listener in self._sockets:
                # On Linux this keeps the address and refuses connections.
                listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._listening or self._stopped)
                if self._stopped:
                    return
            try:
                connection, _ = listener.accept()
            except OSError:
                continue  # it stopped listening meanwhile
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with self._changed:
            self._connections.add(raw)
            self._connection_count += 1
        connection = raw
        try:
            if self.hangs_at_connect():
                self.hold(raw)
                return
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self.secure(raw)
            with self._changed:
                self._connections.discard(raw)
                self._connections.add(connection)
            _Handler(connection, ("", 0), self)  # type: ignore[arg-type]
        except OSError:
            pass  # the client left, or didn't like our certificate
        finally:
            with self._changed:
                self._connections.discard(raw)
                self._connections.discard(connection)
            connection.close()

    def hold(self, connection: socket.socket) -> None:
        """Leave the client waiting until it leaves or the settings change."""
        generation = self._generation
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        while generation == self._generation and not self._stopped:
            if poll.poll(PEER_POLL_SECONDS * 1000):
                return


StandInType = TypeVar("StandInType", bound=StandIn[Any])


def _reset(connection: socket.socket) -> None:
    """Have the connection end with RST, now if a thread is reading from it."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.shutdown(connection, socket.SHUT_RD)
    except OSError:
        pass  # it has ended already


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn[Any]  # type: ignore[assignment]
    wbufsize = -1  # an answer leaves in one piece

    def _exchange(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = Asked(
            method=self.command,
            path=self.path,
            headers={
                name.lower(): ",".join(self.headers.get_all(name, [])) for name in self.headers
            },
            body=self.rfile.read(length),
            arrived=time.monotonic(),
            server_name=getattr(self.connection, "server_name", None),
        )
        try:
            self._send(self.server.answer(asked))
        except Unanswered as fault:
            self.close_connection = True
            if str(fault) == "hang":
                self.server.hold(self.connection)
            elif str(fault) == "trickle":
                self._trickle()
            elif str(fault) == "endless":
                self._send_without_end()
            elif str(fault) != "close":
                _reset(self.connection)  # "refuse" too, of a request that came just before

    do_GET = do_PUT = do_POST = do_DELETE = _exchange  # noqa: N815

    def _trickle(self) -> None:
        """Until the client leaves, or the settings change."""
        fault = self.server.settings.fault
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".ljust(1000):
            if self.server.settings.fault != fault:
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            self.server.sleep(TRICKLE_SECONDS)

    def _send_without_end(self) -> None:
        """Until the client leaves, which is an OSError, or the settings change."""
        fault = self.server.settings.fault
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while self.server.settings.fault == fault:
            self.wfile.write(bytes(2**16))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def version_string(self) -> str:
        return self.server.banner

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.now() if timestamp is None else timestamp)

    def log_message(self, *_: object) -> None:
        pass  # what matters is recorded by the stand-in
