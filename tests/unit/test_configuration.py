"""/etc/tattle.conf: what it sets, what it leaves as it was, and the line that is named where
EventBridge or the instance would not take a value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standins.eventbridge import LONGEST_DETAIL_TYPE
from tattle.errors import TattleError
from tattle.event.config import Config, load, parse
from unit.sessions import attempt, thorough

ARN = "arn:aws:events:us-east-1:012345678901:event-bus/"
EVERY_KEY = f"""\
# as in the README
[tattle]
source = com.example
detail-type = a login, or a logout
event-bus = {ARN}audit
fields = username, session tag:Name,
  event_id
region = eu-central-1
resource = arn:aws:ec2:eu-central-1:012345678901:instance/i-1
endpoint-url = https://vpce-1.events.eu-central-1.vpce.amazonaws.com
proxy = http://proxy.internal:3128
ca-bundle = /etc
use-fips = yes
use-dualstack: off
"""
LONGEST = {"source": 256, "detail-type": 128, "event-bus": 1600, "resource": 2048}
BAD_VALUES = [
    ("source", "aws.ec2", "aws"),
    ("source", "AWS.ec2", "aws"),
    ("source", "a\x1bb", "aws"),
    ("source", "", "expected printable"),
    *((key, "x" * (longest + 1), str(longest)) for key, longest in LONGEST.items()),
    ("detail-type", "", "expected printable"),
    ("event-bus", "", "a name or arn:"),
    ("event-bus", "a b", "a name or arn:"),
    ("event-bus", "ä", "a name or arn:"),
    ("event-bus", ARN, "a name or arn:"),
    ("event-bus", "arn:aws:events:us-east-1:1:event-bus/x", "a name or arn:"),
    ("fields", "", "unknown field"),
    ("fields", "username, nonsense", "'nonsense'"),
    ("fields", "tag:", "'tag:'"),
    ("region", "", "us-east-1"),
    ("region", "US East", "us-east-1"),
    ("region", "evil.example/?", "us-east-1"),
    ("resource", "", "expected printable"),
    ("endpoint-url", "events.example", "https://"),
    ("endpoint-url", "ftp://events.example", "https://"),
    ("endpoint-url", "https://", "https://"),
    ("proxy", "proxy.internal:3128", "https?://"),
    ("proxy", "", "https?://"),
    ("ca-bundle", "ca.pem", "path from /"),
    ("ca-bundle", "/nowhere/ca.pem", "No such file"),
    ("ca-bundle", "/tmp\x00", "null"),
    ("use-fips", "perhaps", "true or false"),
    ("use-dualstack", "", "true or false"),
    ("nonsense", "x", "known keys: source"),
]
EXPECTED = "expected .tattle. or .service NAME."
BAD_LINES = [
    ("source = early\n", 1, EXPECTED),
    ("[tattle]\n\nnonsense\n", 3, ""),
    ("[tattle]\nsource = a\nsource = b\n", 3, "is set twice"),
    ("[tattle]\n[service a]\n[tattle]\n", 3, "is set twice"),
    ("[service b]\nsource = a\n[service  b]\n", 3, "service b. is set twice"),
    ("[tattle\n", 1, ""),
    ("\n[nonsense]\n\n\n", 2, EXPECTED),
    ("\n[nonsense] ; why\n\n\n", 2, EXPECTED),
    ("\n[a=b]\n\n\n", 2, EXPECTED),
    ("\n[Tattle]\n\n", 2, EXPECTED),
    ("[DEFAULT]\nsource = a\n", 1, EXPECTED),  # configparser's section of that name is off
    ("\n[service]\n\n", 2, EXPECTED),
    ("\n[service ]\n\n", 2, EXPECTED),
    ("[tattle]\nsource = a\n[service b]\nsource =\n", 4, "service b.*expected printable"),
    ("[service b]\nevent-bus = a b\n", 2, "service b.*event-bus"),
    ("[service b]\nsource = aws.ec2\n", 2, "service b.*aws"),
    ("[tattle]\nfields =\n  username\n  usernme\n", 2, "unknown field 'usernme'"),
    ("[service b]\nregion = us-east-1\n", 2, "keys: source, detail-type, event-bus, fields$"),
    ("[tattle]\nsource = a\n  fields = tty\n", 2, "source: goes on in the next line"),
    ("[tattle]\n  use-fips: perhaps\n\n", 2, "true or false"),
    ("[tattle]\nUSE-FIPS = perhaps\n\n", 2, "true or false"),
]


def test_every_key_is_read() -> None:
    assert parse(EVERY_KEY) == Config(
        source="com.example",
        detail_type="a login, or a logout",
        event_bus=f"{ARN}audit",
        fields=("username", "session", "tag:Name", "event_id"),
        region="eu-central-1",
        resource="arn:aws:ec2:eu-central-1:012345678901:instance/i-1",
        endpoint_url="https://vpce-1.events.eu-central-1.vpce.amazonaws.com",
        proxy="http://proxy.internal:3128",
        ca_bundle="/etc",
        use_fips=True,
        use_dualstack=False,
    )


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "[tattle]\n", "[service sudo]\n"])
def test_a_file_that_sets_nothing_changes_nothing(text: str) -> None:
    assert parse(text).of("sudo") == Config()


@pytest.mark.parametrize("service_first", [True, False])
def test_a_service_overrides_and_inherits_the_rest(service_first: bool) -> None:
    parts = [
        "[service sudo]\nsource = sudo\nfields = username\n",
        "[tattle]\nsource = all\nevent-bus = audit\nregion = eu-west-1\n",
    ]
    told = parse("".join(parts if service_first else reversed(parts)))
    sudo, sshd = told.of("sudo"), told.of("sshd")
    assert (sudo.source, sudo.fields, sudo.event_bus) == ("sudo", ("username",), "audit")
    assert sudo.region == "eu-west-1"
    assert (sshd.source, sshd.fields, sshd.event_bus) == ("all", Config().fields, "audit")
    assert told.of(None) == sshd


def test_services_do_not_inherit_from_one_another() -> None:
    told = parse("[service sudo]\nsource = sudo\n[service su]\nevent-bus = audit\n")
    assert told.of("su").source == "com.unbounce.tattle"
    assert told.of("sudo").event_bus is None


def test_the_buses_are_each_named_once() -> None:
    services = "[service su]\nevent-bus = one\n[service sudo]\nevent-bus = two\n"
    assert parse(services).buses() == ["", "one", "two"]
    assert parse(f"[tattle]\nevent-bus = two\n{services}").buses() == ["two", "one"]
    assert Config().buses() == [""]


@pytest.mark.parametrize(("key", "longest"), LONGEST.items())
def test_a_text_may_be_as_long_as_eventbridge_takes(key: str, longest: int) -> None:
    fits = parse(f"[tattle]\n{key} = {'x' * longest}\n")
    assert getattr(fits, key.replace("-", "_")) == "x" * longest


@pytest.mark.parametrize(("key", "value", "reason"), BAD_VALUES)
def test_a_bad_value_is_told_with_file_line_and_key(key: str, value: str, reason: str) -> None:
    text = f"# first\n[service sudo]\nsource = sudo\n\n[tattle]\n# sixth\n{key} = {value}\n#"
    with pytest.raises(TattleError, match=f"(?s)/etc/tattle.conf, line 7: .*{key}.*{reason}") as e:
        parse(text)
    assert e.value.status == os.EX_CONFIG
    assert str(e.value).isprintable()
    assert "+7 /etc/tattle.conf" in e.value.advice


def test_a_service_has_nothing_of_another() -> None:
    told = parse("[service a]\nsource = a\n[service b]\nfields = tty\n")
    assert (told.of("a").source, told.of("a").fields) == ("a", Config().fields)
    assert (told.of("b").source, told.of("b").fields) == (Config().source, ("tty",))
    assert told.of("b").services == {}


@pytest.mark.parametrize(("text", "line", "reason"), BAD_LINES)
def test_a_line_that_is_not_understood_is_told(text: str, line: int, reason: str) -> None:
    with pytest.raises(TattleError, match=f"a.conf, line {line}: .*{reason}") as refusal:
        parse(text, "a.conf")
    assert refusal.value.status == os.EX_CONFIG


def test_there_need_be_no_file(tmp_path: Path) -> None:
    assert load(str(tmp_path / "tattle.conf")) == Config()


@pytest.mark.parametrize(
    ("content", "line"), [(b"[tattle]\nsource = \xff\n", 2), (b"\xff\xfe[\0t\0]\0", 1)]
)
def test_a_file_that_is_not_utf_8_is_told(content: bytes, line: int, tmp_path: Path) -> None:
    file = tmp_path / "tattle.conf"
    file.write_bytes(content)
    with pytest.raises(TattleError, match=f"{file}, line {line}: not UTF-8") as refusal:
        load(str(file))
    assert refusal.value.status == os.EX_CONFIG


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(TattleError) as caught:
        load(str(tmp_path))
    assert (str(caught.value), caught.value.status) == (f"{tmp_path}: Is a directory", os.EX_CONFIG)
    assert caught.value.advice == f"ls -l {tmp_path}"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602, 0o1666])
def test_a_file_that_somebody_else_could_write_is_not_read(mode: int, tmp_path: Path) -> None:
    """It could send events elsewhere. Whom a file may belong to: test_trust.py."""
    file, bundle = tmp_path / "tattle.conf", tmp_path / "ca.pem"
    bundle.touch()
    for spoilt, begins in ((bundle, f"{file}, line 2: [tattle] ca-bundle: "), (file, "")):
        file.write_text(f"[tattle]\nca-bundle = {bundle}\n")
        assert load(str(file)).ca_bundle == str(bundle)
        spoilt.chmod(mode)
        with pytest.raises(TattleError) as caught:
            load(str(file))
        fault = f"{begins}{spoilt} belongs to or can be written by somebody else"
        assert (str(caught.value), caught.value.status) == (fault, os.EX_CONFIG)
        spoilt.chmod(0o600)


def test_a_link_to_a_trusted_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "fleet.conf").write_text("[tattle]\nsource = org.example\n")
    (tmp_path / "tattle.conf").symlink_to("fleet.conf")
    assert load(str(tmp_path / "tattle.conf")).source == "org.example"


LINES = st.one_of(
    st.sampled_from(["[tattle]", "[service sudo]", "[service x]", "source", "fields = tag:é"]),
    st.builds("{} = {}".format, st.sampled_from(EVERY_KEY.split()), st.text(max_size=20)),
    st.text(max_size=20),
)


@thorough
@given(text=st.lists(LINES, max_size=8).map("\n".join))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    told = attempt(parse, text)
    if isinstance(told, TattleError):
        assert told.status == os.EX_CONFIG
        assert str(told).startswith("/etc/tattle.conf, line ")
        return
    for one in (told, *told.services.values()):
        assert one.source
        assert 0 < len(one.detail_type) <= LONGEST_DETAIL_TYPE
        assert one.fields
