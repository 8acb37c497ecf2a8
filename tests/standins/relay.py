"""What hands on what it reads to a server, and back: the ground of a TLS front and of a proxy."""

from __future__ import annotations

import socket
import threading
from typing import TypeVar

CHUNK = 65536  # bytes

Self = TypeVar("Self", bound="Relay")


class Relay:
    """Answers each connection in a thread of its own. A context manager: listens while entered."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def __enter__(self: Self) -> Self:
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client:
                self.answer(client)
        except OSError:
            pass  # the client left, or didn't like the certificate

    def answer(self, client: socket.socket) -> None:
        raise NotImplementedError


def relay(client: socket.socket, server: socket.socket) -> None:
    """Hand on what either says until both have said all."""
    answers = threading.Thread(target=_pump, args=(server, client), daemon=True)
    answers.start()
    _pump(client, server)
    answers.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one of them left
