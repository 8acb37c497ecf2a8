"""HTTP for botocore and IMDS's client: reserved ports where no other is free, bounded answers.

Every local user may bind all the ports that a connection gets by itself; and whoever answers in
place of IMDS or EventBridge may never stop.
"""

from __future__ import annotations

import errno
import http.client
import io
import random
import socket
from typing import Any, TypeVar

from botocore import awsrequest
from urllib3 import PoolManager
from urllib3.exceptions import NewConnectionError

from tattle.errors import log

ANSWER_BYTES = 1024 * 1024  # of a whole answer, as it is sent. Those of AWS have some thousand
# Ports that only root may bind, and that services have no claim to: bindresvport(3)
RESERVED_PORTS = range(600, 1024)
ATTEMPTS = 20  # such ports, of which few are ever in use
NOT_OURS = (errno.EADDRINUSE, errno.EACCES)  # of a port: what bind(2) says

E = TypeVar("E", bound=BaseException)


class TooLongError(OSError):
    """An answer did not end where every real one has ended."""

    def __init__(self) -> None:
        super().__init__(errno.EMSGSIZE, f"an answer of more than {ANSWER_BYTES} bytes")


class NoPortError(NewConnectionError):
    """All ports are taken: nothing can be said about the other end."""


class BoundedResponse(http.client.HTTPResponse):
    """An answer whose headers and body together are read up to ANSWER_BYTES."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp = io.BufferedReader(Bounded(self.fp.detach()))


class Bounded(io.RawIOBase):
    """A stream that raises TooLongError once ANSWER_BYTES were read."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.left = ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self.raw.readinto(buffer)
        self.left -= count or 0
        if self.left < 0:
            raise TooLongError
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class Connection:
    """A connection as botocore makes it, from a reserved port if the kernel has no other left."""

    response_class = BoundedResponse
    source_address: tuple[str, int] | None

    def _new_conn(self) -> socket.socket:
        connect = super()._new_conn  # type: ignore[misc]
        try:
            return connect()  # type: ignore[no-any-return]
        except NewConnectionError as error:
            if errno_of(error) != errno.EADDRNOTAVAIL:
                raise
            taken = error
        for port in random.sample(RESERVED_PORTS, ATTEMPTS):
            self.source_address = ("", port)
            try:
                connected = connect()
            except NewConnectionError as error:
                if errno_of(error) not in NOT_OURS:
                    raise  # it was not for want of a port: IPv6 without an address, for one
            else:
                log(f"no port above 1023 is free: connected from port {port}")
                return connected  # type: ignore[no-any-return]
            finally:
                self.source_address = None
        raise NoPortError(taken.conn, "no port is free") from taken


class HttpConnection(Connection, awsrequest.AWSHTTPConnection):  # type: ignore[misc]
    """HTTP's."""


class HttpsConnection(Connection, awsrequest.AWSHTTPSConnection):  # type: ignore[misc]
    """HTTPS's."""


def errno_of(error: BaseException) -> int | None:
    """Return the errno(3) of the system call that a connection failed over."""
    return getattr(error.__cause__, "errno", None)


def cause(error: BaseException | None, kind: type[E]) -> E | None:
    """Return the error of that kind that led to this one, if one did."""
    while error:
        if isinstance(error, kind):
            return error
        error = error.__context__
    return None


def patch_botocore() -> None:
    """Have botocore make connections of ours.

    ConnectionCls is where urllib3 wants it said. botocore offers no setting that would reach all:
    the clients of EventBridge and STS, and its own of IMDS, each make an HTTP session themselves.
    """
    awsrequest.AWSHTTPConnectionPool.ConnectionCls = HttpConnection
    awsrequest.AWSHTTPSConnectionPool.ConnectionCls = HttpsConnection


def pool_manager(timeout: float) -> PoolManager:
    """Return an HTTP client that makes connections of ours, once patch_botocore() was called."""
    manager = PoolManager(timeout=timeout, retries=False)
    manager.pool_classes_by_scheme = {
        "http": awsrequest.AWSHTTPConnectionPool,
        "https": awsrequest.AWSHTTPSConnectionPool,
    }
    return manager
