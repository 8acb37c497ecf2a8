"""Keys that any user can make and whose public part is larger than what execve(2) takes, 128 KiB:
sshd puts it into PAM's environment."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from standins.instance import Instance

KEY_ID = "x" * 110_000
APPLICATION = b"ssh:" + b"x" * 100_000  # with the data to sign it fits into an agent's message
SECURITY_KEY = b"sk-ssh-ed25519@openssh.com"
AGENT = "/tmp/agent"
# https://datatracker.ietf.org/doc/html/draft-ietf-sshm-ssh-agent
IDENTITIES_ANSWER, SIGN_REQUEST, SIGN_RESPONSE = 12, 13, 14


@contextmanager
def certificate(box: Instance, user: str) -> Iterator[list[str]]:
    """The user's own key certifies another one. Yields ssh's options for it."""
    home = f"/home/{user}/.ssh"
    allowed = box.read(f"{home}/authorized_keys")
    box.write(f"{home}/authorized_keys", f"cert-authority {allowed}", 0o600, user)
    box.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/key"], check=True)
    ca = f"/root/.ssh/{user}"
    sign = ["ssh-keygen", "-q", "-s", ca, "-I", KEY_ID, "-n", user, "/tmp/key.pub"]
    box.run(sign, check=True)
    # An IdentityFile before the one that a login uses otherwise
    yield ["-i", "/tmp/key", "-o", "CertificateFile=/tmp/key-cert.pub"]


@contextmanager
def security_key(box: Instance, user: str) -> Iterator[list[str]]:
    """A FIDO key without a device: PROTOCOL.u2f in OpenSSH says what it signs. Its agent serves
    while entered. Yields ssh's options for it."""
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    public = string(SECURITY_KEY) + string(raw) + string(APPLICATION)
    line = f"{SECURITY_KEY.decode()} {b64encode(public).decode()}\n"
    box.write(f"/home/{user}/.ssh/authorized_keys", line, 0o600, user)
    box.write("/root/.ssh/sk.pub", line, 0o600)

    def sign(data: bytes) -> bytes:
        touched = b"\1" + struct.pack(">I", 1)  # flags: somebody was there; a counter
        digests = hashlib.sha256(APPLICATION).digest() + touched + hashlib.sha256(data).digest()
        return string(SECURITY_KEY) + string(key.sign(digests)) + touched

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box.path("/tmp") / "agent"))
        listener.listen()
        threading.Thread(target=serve, args=(listener, public, sign), daemon=True).start()
        yield ["-o", f"IdentityAgent={AGENT}", "-i", "/root/.ssh/sk.pub"]


def string(value: bytes) -> bytes:
    """As SSH writes one, RFC 4251."""
    return struct.pack(">I", len(value)) + value


def serve(listener: socket.socket, public: bytes, sign: Callable[[bytes], bytes]) -> None:
    """Be an ssh-agent with one key until the socket is closed."""
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client, client.makefile("rwb") as stream:
                while header := stream.read(4):
                    request = stream.read(struct.unpack(">I", header)[0])
                    answer = struct.pack(">BI", IDENTITIES_ANSWER, 1) + string(public) + string(b"")
                    if request[0] == SIGN_REQUEST:
                        (length,) = struct.unpack_from(">I", request, 5 + len(public))
                        data = request[9 + len(public) :][:length]
                        answer = bytes([SIGN_RESPONSE]) + string(sign(data))
                    stream.write(string(answer))
                    stream.flush()


LargeKey = Callable[[Instance, str], AbstractContextManager[list[str]]]
