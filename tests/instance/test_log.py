"""What a user can choose forges no line of the log, steers no terminal and breaks no JSON; and no
secret is ever shown."""

from __future__ import annotations

import itertools
import json
import operator
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from conftest import Tattle
from standins import ROLE_CREDENTIALS
from standins.eventbridge import ERRORS, AwsError, EventBridge, Rejection
from standins.imds import TOKEN_HEADER, Imds, role_credentials
from standins.instance import SPOOL, TATTLE, Hook, Instance
from standins.syslogd import AUTHPRIV
from support import eventually

LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "bob"}
FORGED = "sshd[1]: Accepted publickey for root from 10.0.0.1"
NAMES = {
    "a newline": f"bob\n<86>{FORGED}",
    "a carriage return": f"bob\r{FORGED}",
    "a NUL's escape": "bob\\0",
    "ANSI escapes": "\x1b[2J\x1b[1;1H\x1b]0;owned\x07bob",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f",
    "C1 controls": "bob\x9b2J\x85\x90",
    "line and paragraph separators": "bob\u2028\u2029",
    "letters that turn the line around": "bob\u202eevil\u2066\u200f",
    "letters that can't be seen": "bob\u200b\ufeff\u00ad\U000e0041",
    "bytes that are no UTF-8": "bob\udcff\udc80",
    "half a character": "bob\udced\udca0\udc80",
    "a format": "%s%n%d%1$s",
    "JSON": '","session":"closed","x":"',
    "a backslash at the end": "bob\\",
    "quotes": '"}\',{"\\"',
    "an equals sign": "a=b=c",
    "other scripts": "Ünïcødé 用户 🔑",
    "a very long value": "x" * 100_000,
    "very many newlines": "\n" * 50_000,
}
INVISIBLE = re.compile(r"[^ -~¡-\U0010ffff]|[\u2028-\u202e\u2066-\u2069\u200b-\u200f\ufeff\u00ad]")


def of_pam(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def assert_harmless(box: Instance) -> None:
    """Each datagram is one line of tattle's, that any terminal shows as it is."""
    lines = box.log(None)
    assert lines
    for line in lines:
        assert line.identifier == "tattle"
        assert (line.facility, line.severity) == (AUTHPRIV, "err")
        assert line.raw.count(b"\n") == 0
        assert line.raw.rstrip(b"\0").decode("utf-8")  # it is UTF-8
        assert not INVISIBLE.search(line.message), ascii(line.message)
        assert len(line.raw) < 8192, "what syslogd cuts"


ITEMS = itertools.cycle(["user", "rhost", "tty", "ruser", "service"])


@pytest.mark.root
def test_no_value_forges_a_line(instance: Instance) -> None:
    """What can't be written anywhere is shown."""
    instance.run(["touch", SPOOL], check=True)  # in the folder's place
    instance.write("/run/tattle-spool", "")
    settings: list[dict[str, Any]] = [{item: of_pam(v)} for item, v in zip(ITEMS, NAMES.values())]
    with instance.session() as session:
        session.run(*(Hook(**of_hook) for of_hook in settings))
    eventually(lambda: sum("lost" in line.message for line in instance.log()) == len(NAMES), 30)
    assert_harmless(instance)


@pytest.mark.root
def test_no_odd_block_forges_a_line(instance: Instance) -> None:
    odd = [Hook(type=value) for value in NAMES.values()]
    odd += [Hook(user=None, rhost=of_pam(value)) for value in NAMES.values()]
    with instance.session() as session:
        assert {result.returncode for result in session.run(*odd)} == {64}
    eventually(lambda: len(instance.log()) == len(odd), 30)
    assert_harmless(instance)


@pytest.mark.root
def test_nor_does_an_argument_on_the_pam_line_or_a_files_name(instance: Instance) -> None:
    instance.hook(arguments=[f"--wait\n{FORGED}", "\x1b[2J", "x" * 100_000])
    instance.eventbridge.wait_for(1)
    instance.kill_deliverers()
    instance.run(["touch", f"{SPOOL}/\x1b[2J\n{FORGED}"], check=True)
    instance.run([TATTLE, "flush"])
    instance.syslog.wait_for("rejected: ")
    assert_harmless(instance)


@pytest.mark.root
def test_the_detail_is_json_that_says_what_pam_said(instance: Instance) -> None:
    values = {of_pam(value) for value in NAMES.values()}
    with instance.session() as session:
        session.run(*(Hook(user=value, rhost=value) for value in values))
    entries = instance.eventbridge.wait_for(len(values), timeout=30)
    said = [value.decode("utf-8", "backslashreplace") for value in values]
    expected = [{"username": one, "remote_host": one, "session": "opened"} for one in said]
    key = operator.itemgetter("username")
    assert sorted((entry.detail for entry in entries), key=key) == sorted(expected, key=key)
    for entry in entries:
        assert set(entry.raw["Detail"]) <= {*string.printable} - {*"\n\r\t\v\f"}
        pairs = json.loads(entry.raw["Detail"], object_pairs_hook=list)
        assert [name for name, _ in pairs] == ["username", "remote_host", "session"]


# From a shell


@pytest.mark.parametrize("name", ["a newline", "ANSI escapes", "bytes that are no UTF-8"])
def test_what_the_smoke_test_says_is_one_line(tattle: Tattle, name: str) -> None:
    done = tattle(env={"PAM_TYPE": "open_session", "PAM_USER": of_pam(NAMES[name])})
    assert (done.returncode, done.stderr) == (0, "")
    assert_one_line(done.stdout)
    done = tattle(env={"PAM_TYPE": of_pam(NAMES[name]), "PAM_USER": "bob"})
    assert (done.returncode, done.stdout) == (64, "")
    assert_one_line(done.stderr)


def test_what_aws_says_is_one_line(tattle: Tattle, eventbridge: EventBridge, imds: Imds) -> None:
    text = "".join(of_pam(value).decode("utf-8", "replace")[:100] for value in NAMES.values())
    eventbridge.set(rejections=[Rejection("bob", f"Evil{text}", text)])
    assert_one_line(tattle(env=LOGIN).stderr)
    imds.set(role="evil\x1b[2J")
    assert_one_line(tattle(env=LOGIN).stderr)


def assert_one_line(output: str) -> None:
    assert output.endswith("\n")
    assert not INVISIBLE.search(output[:-1]), ascii(output)


# Secrets


SECRETS = (ROLE_CREDENTIALS.secret_access_key, ROLE_CREDENTIALS.session_token)
# As services of AWS's tell of a signature that does not match: with the request they saw.
LEAKING = (
    "The request signature we calculated does not match the signature you provided. Check your AWS "
    "Secret Access Key and signing method. Consult the service documentation for details.\n\nThe "
    "Canonical String for this request should have been\n'POST\n/\n\ncontent-type:application/"
    "x-amz-json-1.1\nhost:events.us-east-1.amazonaws.com\nx-amz-date:20260102T030405Z\n"
    f"x-amz-security-token:{ROLE_CREDENTIALS.session_token}\n'"
)
LEAKS: Mapping[str, dict[str, Any]] = {
    "a leaking answer": {"fault": "access-denied"},
    "a refused entry": {"rejections": [Rejection("", "Evil", LEAKING)]},
    "rubbish": {"fault": "rubbish"},
    "a connection that breaks": {"fault": "reset"},
    "a clock that is wrong": {"clock_skew": 4000},
    "throttling": {"fault": "throttle"},
    "nothing wrong": {},
}


@pytest.fixture
def _leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = AwsError(400, "InvalidSignatureException", LEAKING)
    monkeypatch.setitem(ERRORS, "access-denied", answer)


def tokens(stand_in: Imds) -> Iterator[str]:
    """The tokens that IMDS gave out."""
    for request in stand_in.requests():
        if TOKEN_HEADER in request.headers:
            yield request.headers[TOKEN_HEADER]


def assert_no_secret(text: str, stand_in: Imds) -> None:
    for secret in (*SECRETS, *tokens(stand_in)):
        assert secret not in text
        assert secret[:20] not in text


@pytest.mark.usefixtures("_leaking")
@pytest.mark.parametrize("leak", LEAKS)
def test_no_secret_is_printed_in_a_shell(
    tattle: Tattle, imds: Imds, eventbridge: EventBridge, leak: str
) -> None:
    """Not even with --debug, which adds how it went and ends with the same line."""
    eventbridge.set(**LEAKS[leak])
    done = tattle("--debug", env=LOGIN)
    assert [*tokens(imds)] != []
    assert_no_secret(done.stdout + done.stderr, imds)
    for text in ("Signature=", "Traceback"):
        assert text not in done.stderr
    assert "/latest/api/token" in done.stderr
    assert len(done.stderr.splitlines()) > 5
    assert done.stderr.splitlines()[-1].startswith("tattle: ") == (leak != "nothing wrong")


@pytest.mark.parametrize(
    "credentials",
    [
        b'{"SecretAccessKey": "%s"' % SECRETS[0].encode(),
        role_credentials(AccessKeyId=None),
        role_credentials(Expiration="evil", Message="something is missing"),
        role_credentials(lifetime=-1000),
    ],
    ids=["half", "no key id", "no date", "expired"],
)
def test_nor_are_credentials_that_are_not_what_they_should_be(
    tattle: Tattle, imds: Imds, credentials: Any
) -> None:
    imds.set(credentials=credentials)
    done = tattle("--debug", env=LOGIN)
    assert_no_secret(done.stdout + done.stderr, imds)


@pytest.mark.root
@pytest.mark.usefixtures("_leaking")
@pytest.mark.parametrize("leak", ["a leaking answer", "a refused entry", "rubbish"])
def test_no_secret_gets_into_the_log(instance: Instance, leak: str) -> None:
    instance.eventbridge.set(**LEAKS[leak])
    instance.hook()
    instance.eventbridge.wait_for_calls(1)
    instance.syslog.wait_for("events wait")
    instance.kill_deliverers()
    flushed = instance.run([TATTLE, "flush"])
    text = "".join(line.message for line in instance.log(None))
    assert_no_secret(text + flushed.stdout + flushed.stderr, instance.imds)
    for name in instance.spool():
        if name != "rejected":
            assert_no_secret(instance.read(f"{SPOOL}/{name}"), instance.imds)
