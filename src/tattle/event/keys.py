"""What ssh-keygen says of a key or certificate. It knows the same types as the sshd beside it."""

from __future__ import annotations

import functools
import re
import subprocess

KEYGEN = "/usr/bin/ssh-keygen"
KEYGEN_SECONDS = 5  # it takes some milliseconds
FINGERPRINT = r"SHA256:[A-Za-z0-9+/]{43}"
CERTIFICATE = (  # the fields, ssh-keygen's names for them, and how they look
    ("key_id", "Key ID", '"(.*)"'),
    ("serial", "Serial", "([0-9]+)"),
    ("ca", "Signing CA", rf"\S+ ({FINGERPRINT})( .*)?"),
)
KEYS = 32  # whose facts are kept: one may have 128 kB
LONGEST_KEY_ID = 1000  # characters. A user's own authority may give one of 100 kB


@functools.lru_cache(maxsize=KEYS)
def fingerprint(key: str) -> str | None:
    """Return the SHA256 fingerprint of a public key or certificate `type base64`, if it is one.

    Of a certificate it is the fingerprint of the key that it certifies.
    """
    printed = re.fullmatch(rf"\d+ ({FINGERPRINT}) .*\n", keygen("-lf", key))
    return printed[1] if printed else None


@functools.lru_cache(maxsize=KEYS)
def certificate(key: str) -> dict[str, str] | None:
    """Return key id, serial (which has 64 bits) and the authority's fingerprint of a certificate.

    None of another key, and of a certificate whose key id or principals have lines of their own
    that read like those of ssh-keygen's.
    """
    lines = keygen("-Lf", key).split("\n") if "-cert-" in key.partition(" ")[0] else []
    fields = {}
    for name, label, form in CERTIFICATE:
        ours = [line for line in lines if line.startswith(f"        {label}: ")]
        value = re.fullmatch(form, ours[0].partition(": ")[2]) if len(ours) == 1 else None
        if not value:
            return None
        fields[name] = value[1]
    if len(fields["key_id"]) > LONGEST_KEY_ID:
        fields["key_id"] = fields["key_id"][:LONGEST_KEY_ID] + "…"
    return fields


def keygen(option: str, key: str) -> str:
    """Return what ssh-keygen prints of a public key or certificate; nothing if it is none."""
    try:
        return subprocess.run(
            [KEYGEN, option, "-"],
            input=" ".join(key.split(" ")[:2]) + "\n",
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            env={},
            timeout=KEYGEN_SECONDS,
            check=True,
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
