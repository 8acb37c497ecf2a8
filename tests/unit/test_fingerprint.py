"""Of a key and a certificate we say what ssh-keygen says, and null where that says nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import need
from tattle.event import keys
from tattle.event.keys import certificate, fingerprint

# OpenSSH 10.6 made it, and says so of it. Earlier versions do not know this type.
NEW_CERTIFICATE = Path(__file__).with_name("ssh-mldsa44-ed25519-cert.pub")
NEW_FINGERPRINT = "SHA256:ESIMzM4oMRLhwV+FGzHpzykcbbH0QEn5W7c3Co5tK/o"


@pytest.fixture(autouse=True)
def _nothing_cached() -> Iterator[None]:
    fingerprint.cache_clear()
    certificate.cache_clear()
    yield
    fingerprint.cache_clear()
    certificate.cache_clear()


def keygen(*arguments: str) -> str:
    need(shutil.which("ssh-keygen"), "needs ssh-keygen")
    command = ["ssh-keygen", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A public key, with a comment, beside its private key."""
    keygen("-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", str(tmp_path / "key"))
    return tmp_path / "key.pub"


def test_of_a_key(key: Path) -> None:
    expected = keygen("-lf", str(key)).split()[1]
    assert fingerprint(key.read_text()) == expected
    assert fingerprint(" ".join(key.read_text().split()[:2])) == expected


def test_of_a_certificate_it_is_the_certified_keys(key: Path) -> None:
    keygen("-q", "-s", str(key.with_suffix("")), "-I", "id", "-n", "ubuntu", str(key))
    certificate = key.with_name("key-cert.pub").read_text()
    assert certificate.startswith("ssh-ed25519-cert-v01@openssh.com ")
    assert fingerprint(certificate) == keygen("-lf", str(key)).split()[1]


def certified(key: Path, key_id: str, serial: str, *options: str) -> str:
    """A certificate of the key, by a key beside it."""
    authority = key.with_name("authority")
    if not authority.exists():
        keygen("-q", "-t", "ecdsa", "-N", "", "-f", str(authority))
    keygen("-q", "-s", str(authority), "-I", key_id, "-z", serial, *options, str(key))
    return key.with_name("key-cert.pub").read_text()


@pytest.mark.parametrize("key_id", ["alice@example.com", "é \t$x ☎", "", 'a" b: "', "\udce9"])
def test_a_certificate_has_a_key_id_a_serial_and_an_authority(key_id: str, key: Path) -> None:
    told = certificate(certified(key, key_id, str(2**64 - 1), "-n", "ubuntu"))
    ca = keygen("-lf", str(key.with_name("authority.pub"))).split()[1]
    key_id = os.fsencode(key_id).decode(errors="backslashreplace")
    assert told == {"key_id": key_id, "serial": str(2**64 - 1), "ca": ca}


def test_a_key_id_without_end_is_cut(key: Path) -> None:
    told = certificate(certified(key, "x" * 100_000, "0"))
    assert told
    assert told["key_id"] == "x" * 1000 + "…"


@pytest.mark.parametrize(
    ("key_id", "principal"),
    [('a"\n        Serial: 99', "ubuntu"), ("a", 'x\n        Key ID: "root"')],
)
def test_of_a_certificate_that_reads_two_ways_nothing_is_said(
    key_id: str, principal: str, key: Path
) -> None:
    assert certificate(certified(key, key_id, "1", "-n", principal)) is None
    assert certificate(key.read_text()) is None  # a key is none


def test_of_a_certificate_of_a_new_type_it_is_right_or_null() -> None:
    assert fingerprint(NEW_CERTIFICATE.read_text()) in (NEW_FINGERPRINT, None)


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "ssh-rsa",
        "ssh-rsa !!!",
        "ssh-rsa é",
        "ssh-rsa \0",
        "ssh-rsa \udcff",
        "# ssh-ed25519",
        "ssh-ed25519-cert-v01@openssh.com AAAA",
        "-lf /etc/ssh/ssh_host_ed25519_key.pub",
    ],
)
def test_there_is_none_of_what_is_no_key(rubbish: str) -> None:
    assert fingerprint(rubbish) is None
    assert certificate(rubbish) is None


class Keygen:
    """Scripts in the place of ssh-keygen, which write down when they are run."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = folder / "ssh-keygen"
        self.runs = folder / "runs"
        patch.setattr(keys, "KEYGEN", str(self.path))

    def script(self, text: str) -> None:
        self.path.write_text(
            f"#!/bin/sh\n/usr/bin/env >>{self.runs}\necho run >>{self.runs}\n{text}\n"
        )
        self.path.chmod(0o755)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keygen:
    return Keygen(tmp_path, monkeypatch)


@pytest.mark.parametrize("answer", ["exec sleep 60", "echo 256 MD5:00:11:22 no comment", None])
def test_there_is_none_if_ssh_keygen_hangs_says_something_else_or_is_missing(
    answer: str | None, script: Keygen, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEYGEN_SECONDS", 0.2)
    if answer:
        script.script(answer)
    assert fingerprint(key.read_text()) is None


def test_it_is_asked_once_for_each_key_and_with_an_empty_environment(
    script: Keygen, key: Path
) -> None:
    script.script("exec /usr/bin/ssh-keygen -lf -")
    found = {fingerprint(key.read_text()) for _ in range(3)}
    assert found == {keygen("-lf", str(key)).split()[1]}
    variables = script.runs.read_text().splitlines()
    assert variables.count("run") == 1
    assert {line.partition("=")[0] for line in variables} <= {"PWD", "run", "_", "SHLVL"}
