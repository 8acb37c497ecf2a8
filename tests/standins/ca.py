"""A throwaway certificate authority, and the server certificates, good and bad, that it issues."""

from __future__ import annotations

import datetime
import ssl
import tempfile
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GOOD = "good"
EXPIRED = "expired"
WRONG_HOST = "wrong-host"
UNTRUSTED = "untrusted"


class TlsConnection(ssl.SSLSocket):
    """A connection that remembers the name its client asked for."""

    server_name: str | None = None


class Ca:
    """Issues a certificate for any host name, on demand, of any of the kinds above."""

    def __init__(self, name: str = "Test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._certificate = self._sign(
            x509.CertificateBuilder()
            .subject_name(self._subject)
            .public_key(self._key.public_key())
            .add_extension(self._identifier, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_CA_KEY_USAGE, critical=True),
            days=1,
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}
        self._lock = threading.Lock()

    def write(self, path: Path) -> Path:
        """Write the authority's certificate, for clients to trust."""
        path.write_bytes(self.pem)
        return path

    def context(self, host: str, kind: str = GOOD) -> ssl.SSLContext:
        """A server's TLS context for that host name, the same one each time."""
        with self._lock:
            if (host, kind) not in self._contexts:
                self._contexts[host, kind] = self.make_context(host, kind)
            return self._contexts[host, kind]

    def make_context(self, host: str, kind: str = GOOD) -> ssl.SSLContext:
        if kind == UNTRUSTED:
            return Ca("Somebody Else's CA").context(host)
        if kind == WRONG_HOST:
            host = "elsewhere.example"
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")]))
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            ),
            days=-1 if kind == EXPIRED else 1,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = TlsConnection
        with tempfile.NamedTemporaryFile() as chain:
            chain.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            chain.write(certificate.public_bytes(serialization.Encoding.PEM))
            chain.flush()
            context.load_cert_chain(chain.name)
        return context

    def _sign(self, builder: x509.CertificateBuilder, days: int) -> x509.Certificate:
        """Sign a certificate that ends that many days from now."""
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            builder.issuer_name(self._subject)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


_CA_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
