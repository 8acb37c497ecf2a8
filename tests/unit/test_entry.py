"""The pure parts: any bytes in, and out comes valid JSON within EventBridge's limits, or a refusal
that a person can read. Never another exception."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from standins.eventbridge import ENTRIES_BYTES, LONGEST_DETAIL_TYPE, check_entry
from standins.eventbridge import entry_size as size_by_the_stand_in
from standins.imds import identity_document
from tattle.delivery import config, events
from tattle.delivery.deliver import Deliverer
from tattle.delivery.fields import (
    DEFAULT,
    FROM_INSTANCE,
    FROM_SESSION,
    FROM_SSHD,
    connection,
    detail,
    event_id,
    session_id,
)
from tattle.delivery.imds import IdentityDocument
from tattle.delivery.watchdog import Heartbeat
from tattle.errors import TattleError
from tattle.login.pam import ITEMS, Session, parse, trusted_block
from tattle.login.spool import Spool

ALL_FIELDS = (*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:Name", "tag:é")
DOCUMENT = cast(IdentityDocument, identity_document())
CONTEXT = (b"TATTLE_TIME", b"TATTLE_UPTIME", b"TATTLE_PARENT", b"TATTLE_PARENT_START")
SAID_BY_SSHD = (b"TATTLE_UNVERIFIED_SSH_CONNECTION", b"TATTLE_UNVERIFIED_SSH_AUTH_INFO_0")

thorough = settings(max_examples=200, deadline=None)

values = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers().map(lambda number: str(number).encode()),
    st.sampled_from([b"9" * 30, b"9" * 500, "²".encode(), b"-1", b"\x01" * 50_000]),
).map(lambda value: value.replace(b"\0", b""))
names = st.one_of(
    st.sampled_from(
        [*ITEMS, *CONTEXT, *SAID_BY_SSHD, b"TATTLE_BOOT", b"PAM_X", b"LD_PRELOAD", b""]
    ),
    st.binary(max_size=8).map(lambda name: name.replace(b"\0", b"").replace(b"=", b"")),
)
blocks = st.lists(st.tuples(names, values), max_size=12).map(
    lambda variables: b"".join(name + b"=" + value + b"\0" for name, value in variables)
)
sessions = st.builds(
    lambda block, kind, user, when: parse(
        block + b"TATTLE_TIME=%d\0PAM_USER=%b\0PAM_TYPE=%b\0" % (when, user or b"u", kind)
    ),
    blocks,
    st.sampled_from([b"open_session", b"close_session"]),
    values,
    st.integers(0, 4_000_000_000 * 10**9),
)


def block(**items: str | bytes) -> bytes:
    """An environment block as pam_exec writes it: its items in their order."""
    encoded = {name: os.fsencode(value) for name, value in items.items()}
    return b"".join(b"%b=%b\0" % (name.encode(), value) for name, value in encoded.items())


def session(
    kind: str = "open_session", context: dict[str, str] | None = None, **pam: str
) -> Session:
    return Session({"PAM_TYPE": kind, "PAM_USER": "ubuntu", **pam}, context or {})


def said(session: Session, fields: tuple[str, ...], believed: bool = True) -> dict[str, Any]:
    text = detail(session, fields, DOCUMENT, tags_of({"Name": "bastion"}), lambda _: believed)
    said: dict[str, Any] = json.loads(text)
    return said


def tags_of(tags: dict[str, str]) -> Callable[[str], str | None]:
    return lambda name: tags.get(name)  # noqa: PLW0108 (mypy wants one signature)


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the TattleError it raises."""
    try:
        return function(*arguments)
    except TattleError as refusal:
        return refusal


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


class TestTheTrustedBlock:
    BLOCK = block(
        PAM_SERVICE="sshd", PAM_USER="u", PAM_TTY="ssh", PAM_RHOST="h", PAM_TYPE="open_session"
    )

    def test_it_is_what_follows_the_last_service(self) -> None:
        before = block(LANG="C", PAM_SERVICE="mine", PAM_USER="root", PAM_TYPE="mine")
        assert trusted_block(before + self.BLOCK) == self.BLOCK
        assert trusted_block(self.BLOCK) == self.BLOCK

    def test_a_value_that_looks_like_a_service_is_a_value(self) -> None:
        whole = block(PAM_SERVICE="sshd", PAM_USER="u PAM_SERVICE=x", PAM_TYPE="open_session")
        assert trusted_block(block(A="1") + whole) == whole

    @pytest.mark.parametrize(
        "strange",
        [
            b"",
            b"PAM_SERVICE=sshd\0",
            block(PAM_SERVICE="sshd", PAM_USER="u"),
            block(PAM_SERVICE="sshd", PAM_TYPE="open_session", PAM_USER="u"),
            block(PAM_SERVICE="sshd", PAM_RHOST="h", PAM_USER="u", PAM_TYPE="open_session"),
            block(PAM_SERVICE="sshd", PAM_USER="u", PAM_TYPE="open_session", LATER="x"),
            block(PAM_SERVICE="sshd", PAM_USER="u") + block(PAM_USER="v", PAM_TYPE="open_session"),
            block(PAM_SERVICE="sshd", PAM_USER="u", PAM_X="v", PAM_TYPE="open_session"),
            block(PAM_SERVICE="sshd", PAM_USER="u", PAM_TYPE="open_session")[:-1],
            block(PAM_SERVICE="sshd", PAM_USER="u", PAM_TYPE="auth"),
            block(PAM_SERVICE="sshd", PAM_USER="u", PAM_TYPE="xopen_session"),
            block(PAM_SERVICE="sshd", PAM_USER="", PAM_TYPE="open_session"),
            block(PAM_SERVICE="sshd", PAM_TYPE="open_session"),
        ],
    )
    def test_what_pam_exec_does_not_write_is_refused(self, strange: bytes) -> None:
        with pytest.raises(TattleError, match="refused") as refusal:
            trusted_block(block(LANG="C") + strange)
        assert refusal.value.status == os.EX_USAGE

    @thorough
    @given(blocks, st.binary(max_size=20))
    def test_nothing_before_it_changes_it(self, before: bytes, rubbish: bytes) -> None:
        assert trusted_block(before + self.BLOCK) == self.BLOCK
        assert trusted_block(rubbish.replace(b"\0", b"") + b"\0" + self.BLOCK) == self.BLOCK

    @thorough
    @given(environ=st.one_of(blocks, st.binary(max_size=200)))
    def test_any_bytes_are_a_block_or_refused(self, environ: bytes) -> None:
        found = attempt(trusted_block, environ)
        if isinstance(found, TattleError):
            assert found.status == os.EX_USAGE
            assert str(found).isprintable()
            return
        assert environ.endswith(found)
        variables = found.split(b"\0")
        assert variables.pop() == b""
        written = [variable.partition(b"=")[0] for variable in variables]
        assert written == [item for item in ITEMS if item in written]
        assert written[-1] == b"PAM_TYPE"


class TestParse:
    def test_it_keeps_apart_what_pam_said_and_the_context(self) -> None:
        parsed = parse(block(PAM_USER="u=v", TATTLE_TIME="5", PAM_TYPE="close_session"))
        assert parsed.state == "closed"
        assert parsed.pam == {"PAM_USER": "u=v", "PAM_TYPE": "close_session"}
        assert parsed.context == {"TATTLE_TIME": "5"}

    def test_bytes_that_are_not_utf_8_stay_visible(self) -> None:
        parsed = parse(block(PAM_USER=b"a\xffb\xc3\xa9", PAM_TYPE="open_session"))
        assert parsed.pam["PAM_USER"] == "a\\xffbé"

    @pytest.mark.parametrize("kind", ["", "auth", "account", "OPEN_SESSION", "open_session "])
    def test_only_sessions_are_events(self, kind: str) -> None:
        with pytest.raises(TattleError, match="open_session or close_session") as refusal:
            parse(block(PAM_USER="u", PAM_TYPE=kind))
        assert refusal.value.status == os.EX_USAGE

    @thorough
    @given(record=st.one_of(blocks, st.binary(max_size=200)))
    def test_any_bytes_are_a_session_or_refused(self, record: bytes) -> None:
        parsed = attempt(parse, record)
        if isinstance(parsed, TattleError):
            assert parsed.status == os.EX_USAGE
            assert str(parsed).isprintable()
            return
        assert parsed.pam["PAM_USER"]
        for text in (*parsed.pam.values(), *parsed.context.values()):
            text.encode()


class TestDetail:
    def test_unless_configured_otherwise_it_is_as_ever(self) -> None:
        ours = session(PAM_RHOST="1.2.3.4", PAM_TTY="ssh", PAM_SERVICE="sshd")
        text = detail(ours, DEFAULT, DOCUMENT, tags_of({}), lambda _: True)
        assert text == '{"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}'

    def test_fields_come_in_the_order_asked_for(self) -> None:
        assert list(said(session(), tuple(reversed(DEFAULT)))) == [*reversed(DEFAULT)]

    def test_it_says_what_the_session_and_the_instance_have(self) -> None:
        ours = session(
            "close_session",
            {
                "TATTLE_TIME": "1767323045678901234",
                "TATTLE_UPTIME": str(100 * 10**9),
                "TATTLE_PARENT_START": str(40 * os.sysconf("SC_CLK_TCK")),
                "TATTLE_UNVERIFIED_SSH_CONNECTION": "2001:db8::1 50000 10.0.0.5 22",
                "TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": "publickey ssh-ed25519 AAAA\npassword\n",
            },
            PAM_SERVICE="sshd",
            PAM_TTY="ssh",
            PAM_RUSER="me",
        )
        told = said(ours, ALL_FIELDS)
        assert told["time"] == "2026-01-02T03:04:05.678Z"
        assert told["duration"] == 60
        assert told["auth_method"] == "publickey,password"
        assert told["connection"] == {
            "remote_host": "2001:db8::1",
            "remote_port": 50000,
            "local_host": "10.0.0.5",
            "local_port": 22,
        }
        assert (told["service"], told["tty"], told["remote_user"]) == ("sshd", "ssh", "me")
        assert (told["private_ip"], told["image_id"]) == ("10.0.0.5", "ami-0abcdef1234567890")
        assert (told["availability_zone"], told["instance_type"]) == ("us-east-1b", "t4g.micro")
        assert told["tag:Name"] == "bastion"
        assert "tag:é" not in told

    def test_what_is_not_known_is_null_and_a_duration_at_the_opening_is_absent(self) -> None:
        told = said(session(), ALL_FIELDS)
        assert "duration" not in told
        unknown = ("service", "tty", "remote_user", "time", "session_id", "auth_method")
        assert [told[field] for field in unknown] == [None] * len(unknown)
        assert said(session("close_session"), ("duration",)) == {"duration": None}

    def test_what_sshd_says_is_not_told_where_a_user_could_have_put_it_there(self) -> None:
        context = {
            "TATTLE_UNVERIFIED_SSH_CONNECTION": "1.2.3.4 1 5.6.7.8 22",
            "TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": "password",
        }
        fields = tuple(FROM_SSHD)
        assert None not in said(session(context=context), ("connection", "auth_method")).values()
        assert said(session(context=context), fields, believed=False) == dict.fromkeys(fields)

    def test_an_event_keeps_its_id_and_another_has_another(self) -> None:
        assert event_id(session(context={"A": "1"})) == event_id(session(context={"A": "1"}))
        assert event_id(session(context={"A": "1"})) != event_id(session(context={"A": "2"}))
        assert event_id(session()) != event_id(session(PAM_RHOST="h"))

    def test_a_sessions_opening_and_closing_share_its_id(self) -> None:
        context = {"TATTLE_BOOT": "b", "TATTLE_PARENT": "7", "TATTLE_PARENT_START": "9"}
        opened, closed = (
            session(kind, {**context, "TATTLE_TIME": kind})
            for kind in ("open_session", "close_session")
        )
        assert session_id(opened) == session_id(closed) is not None
        for name in context:
            assert session_id(session(context={**context, name: "other"})) != session_id(opened)
            assert session_id(session(context={**context, name: ""})) is None

    @pytest.mark.parametrize(
        "told", ["", "1.2.3.4 5 6", "h p l q", "1 2 3 4 5", "h 1e3 l 2", "h " + "9" * 5000 + " l 2"]
    )
    def test_a_connection_that_is_none_is_null(self, told: str) -> None:
        assert connection(session(context={"TATTLE_UNVERIFIED_SSH_CONNECTION": told})) is None

    @thorough
    @given(sessions, st.dictionaries(st.sampled_from(["Name", "é"]), st.text(max_size=20)))
    def test_any_session_is_valid_json_of_unicode_text(
        self, ours: Session, tags: dict[str, str]
    ) -> None:
        text = detail(ours, ALL_FIELDS, DOCUMENT, tags_of(tags), lambda _: True)
        text.encode("ascii")
        told = json.loads(text, parse_constant=refuse_constant)
        assert set(ALL_FIELDS) - set(told) <= {"duration", "tag:Name", "tag:é"}
        for field in ("username", "remote_host"):
            told[field].encode()
        assert told["username"] == ours.pam["PAM_USER"]


@pytest.fixture(scope="module")
def publisher() -> Iterator[events.Publisher]:
    """One that asks nobody: who and where this instance is has been configured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", "/nonexistent")
        told = config.parse(
            "[tattle]\nregion = us-east-1\nresource = arn:aws:ec2:::é\nevent-bus = audit\n"
            f"[service sudo]\nsource = sudo\nfields = {', '.join(ALL_FIELDS)}\n"
        )
        yield events.Publisher(told, 1.0)


class OneRecord:
    """A spool of one record, that remembers whether it was set aside."""

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.rejected = ""

    def waiting(self) -> list[str]:
        return ["0"]

    def read(self, _: str) -> bytes:
        return self.record

    def remove(self, _: list[str]) -> None:
        raise AssertionError("nothing was sent")

    def reject(self, _: str, reason: str) -> None:
        self.rejected = reason


class TestARecord:
    WHOLE = block(PAM_SERVICE="sudo", PAM_USER="u", TATTLE_TIME="1", PAM_TYPE="close_session")
    WHOLE += b"TATTLE_BOOT=b\0"

    @thorough
    @given(
        record=st.one_of(blocks.map(lambda damage: TestARecord.WHOLE + damage), blocks, st.binary())
    )
    @example(record=WHOLE + b"TATTLE_TIME=" + b"9" * 19)
    @example(record=WHOLE + b"TATTLE_TIME=" + b"9" * 30)
    @example(record=WHOLE + b"TATTLE_TIME=" + "²".encode())
    @example(record=WHOLE + b"TATTLE_PARENT_START=1\0TATTLE_UPTIME=" + b"9" * 400)
    @example(record=WHOLE + b"TATTLE_UNVERIFIED_SSH_CONNECTION=a %b b 1" % (b"9" * 5000))
    def test_any_bytes_are_one_entry_or_set_aside(
        self, publisher: events.Publisher, record: bytes
    ) -> None:
        """Another exception would stop delivery at that record for good."""
        spool = OneRecord(record)
        spools = [cast(Spool, spool)]
        deliverer = Deliverer(spools, Heartbeat(spools))
        batches = list(deliverer.batches(deliverer.waiting(), publisher))
        assert bool(batches) != bool(spool.rejected)
        for bus, batch in batches:
            (entry,) = batch.values()
            assert entry["EventBusName"] == bus
            assert check_entry(entry) is None
            assert size_by_the_stand_in(entry) < ENTRIES_BYTES


class TestTheEntry:
    @thorough
    @given(ours=sessions, service=st.sampled_from(["sshd", "sudo"]))
    def test_any_session_is_within_eventbridges_limits_or_refused_as_too_large(
        self, publisher: events.Publisher, ours: Session, service: str
    ) -> None:
        ours.pam["PAM_SERVICE"] = service
        entry = attempt(publisher.entry, ours, lambda _: True)
        if isinstance(entry, TattleError):
            assert entry.status == os.EX_DATAERR
            assert str(ENTRIES_BYTES) in str(entry)
            told = (*ours.pam.values(), *ours.context.values())
            assert sum(map(len, told)) > ENTRIES_BYTES / 20
            return
        assert size_by_the_stand_in(entry) < ENTRIES_BYTES
        assert check_entry(entry) is None
        assert entry["EventBusName"] == "audit"
        assert entry["Source"] == ("sudo" if service == "sudo" else "com.unbounce.tattle")
        assert entry["Time"].timestamp() == int(ours.context["TATTLE_TIME"]) // 10**9

    @pytest.mark.parametrize("service", ["sshd", "sudo"])
    def test_the_largest_entry_that_eventbridge_takes_is_an_entry(
        self, service: str, publisher: events.Publisher
    ) -> None:
        context = {"TATTLE_TIME": "1"}
        small = publisher.entry(session(context=context, PAM_SERVICE=service), lambda _: True)
        room = ENTRIES_BYTES - 1 - size_by_the_stand_in(small)
        pam = {"PAM_SERVICE": service, "PAM_RHOST": "x" * room}
        largest = publisher.entry(session(context=context, **pam), lambda _: True)
        assert size_by_the_stand_in(largest) == ENTRIES_BYTES - 1
        pam["PAM_RHOST"] += "x"
        with pytest.raises(TattleError, match="bytes"):
            publisher.entry(session(context=context, **pam), lambda _: True)

    @given(st.text(), st.text(), st.text(), st.lists(st.text()))
    def test_its_size_is_counted_as_eventbridge_counts(
        self, source: str, kind: str, told: str, resources: list[str]
    ) -> None:
        entry = {
            "Source": source,
            "DetailType": kind,
            "Detail": told,
            "Resources": resources,
            "Time": 0,
        }
        assert events.entry_size(entry) == size_by_the_stand_in(entry)


BAD_VALUES = [
    ("source", "aws.ec2", "aws"),
    ("source", "AWS.ec2", "aws"),
    ("source", "", "needs a value"),
    ("detail-type", "x" * (LONGEST_DETAIL_TYPE + 1), str(LONGEST_DETAIL_TYPE)),
    ("detail-type", "", "needs a value"),
    ("event-bus", "", "a name or arn:"),
    ("event-bus", "no such/bus", "a name or arn:"),
    ("fields", "", "no field"),
    ("fields", "username, nonsense", "'nonsense'"),
    ("fields", "tag:", "'tag:'"),
    ("region", "", "us-east-1"),
    ("region", "US East", "us-east-1"),
    ("region", "evil.example/?", "us-east-1"),
    ("resource", "", "needs a value"),
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
    ("nonsense", "x", "there are: source"),
]


class TestTheConfiguration:
    EVERY_KEY = """\
# as in the README
[tattle]
source = com.example
detail-type = a login, or a logout
event-bus = arn:aws:events:us-east-1:012345678901:event-bus/audit
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

    def test_every_key_is_read(self) -> None:
        assert config.parse(self.EVERY_KEY) == config.Config(
            source="com.example",
            detail_type="a login, or a logout",
            event_bus="arn:aws:events:us-east-1:012345678901:event-bus/audit",
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
    def test_nothing_said_is_as_ever(self, text: str) -> None:
        told = config.parse(text).of("sudo")
        assert (told.source, told.detail_type) == (
            "com.unbounce.tattle",
            "SSH connection event detected",
        )
        assert told.fields == ("username", "remote_host", "session")
        assert (told.event_bus, told.region, told.endpoint_url, told.use_fips) == (None,) * 4

    @pytest.mark.parametrize("service_first", [True, False])
    def test_a_service_overrides_and_inherits_the_rest(self, service_first: bool) -> None:
        parts = [
            "[service sudo]\nsource = sudo\nfields = username\n",
            "[tattle]\nsource = all\nevent-bus = audit\nregion = eu-west-1\n",
        ]
        told = config.parse("".join(parts if service_first else reversed(parts)))
        sudo, sshd = told.of("sudo"), told.of("sshd")
        assert (sudo.source, sudo.fields, sudo.event_bus) == ("sudo", ("username",), "audit")
        assert sudo.region == "eu-west-1"
        assert (sshd.source, sshd.fields, sshd.event_bus) == ("all", DEFAULT, "audit")
        assert told.of(None) == sshd

    def test_services_do_not_inherit_from_one_another(self) -> None:
        told = config.parse("[service sudo]\nsource = sudo\n[service su]\nevent-bus = audit\n")
        assert told.of("su").source == "com.unbounce.tattle"
        assert told.of("sudo").event_bus is None

    @pytest.mark.parametrize(("key", "value", "reason"), BAD_VALUES)
    def test_a_bad_value_is_told_with_file_line_and_key(
        self, key: str, value: str, reason: str
    ) -> None:
        text = f"# first\n[service sudo]\nsource = sudo\n\n[tattle]\n# sixth\n{key} = {value}\n#"
        with pytest.raises(
            TattleError, match=f"(?s)/etc/tattle.conf, line 7: .*{key}.*{reason}"
        ) as e:
            config.parse(text)
        assert e.value.status == os.EX_CONFIG
        assert str(e.value).isprintable()

    @pytest.mark.parametrize(
        ("text", "line", "reason"),
        [
            ("source = early\n", 1, "expected .tattle. or .service NAME."),
            ("[tattle]\n\nnonsense\n", 3, ""),
            ("[tattle]\nsource = a\nsource = b\n", 3, "is there twice"),
            ("[tattle]\n[service a]\n[tattle]\n", 3, "is there twice"),
            ("[tattle\n", 1, ""),
            ("\n[nonsense]\n\n\n", 2, "expected .tattle. or .service NAME."),
            ("\n[nonsense] ; why\n\n\n", 2, "expected .tattle. or .service NAME."),
            ("\n[a=b]\n\n\n", 2, "expected .tattle. or .service NAME."),
            ("\n[Tattle]\n\n", 2, "expected"),
            ("\n[service]\n\n", 2, "expected"),
            ("\n[service ]\n\n", 2, "expected"),
            ("\n[service  ]\n\n", 2, "expected"),
            ("[tattle]\nsource = a\n[service b]\nsource =\n", 4, "service b.*needs a value"),
            (
                "[service b]\nregion = us-east-1\n",
                2,
                "there are: source, detail-type, event-bus, fields$",
            ),
            ("[tattle]\n  use-fips: perhaps\n\n", 2, "true or false"),
            ("[tattle]\nUSE-FIPS = perhaps\n\n", 2, "true or false"),
        ],
    )
    def test_a_line_that_makes_no_sense_is_told(self, text: str, line: int, reason: str) -> None:
        with pytest.raises(TattleError, match=f"a.conf, line {line}: .*{reason}") as refusal:
            config.parse(text, "a.conf")
        assert refusal.value.status == os.EX_CONFIG

    def test_there_need_be_no_file(self, tmp_path: Path) -> None:
        assert config.load(str(tmp_path / "tattle.conf")) == config.Config()

    @pytest.mark.parametrize("content", [b"[tattle]\nsource = \xff\n", b"\xff\xfe[\0t\0]\0"])
    def test_a_file_that_is_not_utf_8_is_told(self, content: bytes, tmp_path: Path) -> None:
        file = tmp_path / "tattle.conf"
        file.write_bytes(content)
        with pytest.raises(TattleError, match=str(file)) as refusal:
            config.load(str(file))
        assert refusal.value.status == os.EX_CONFIG

    lines = st.one_of(
        st.sampled_from(["[tattle]", "[service sudo]", "[service x]", "source", "fields = tag:é"]),
        st.builds("{} = {}".format, st.sampled_from(EVERY_KEY.split()), st.text(max_size=20)),
        st.text(max_size=20),
    )

    @thorough
    @given(text=st.lists(lines, max_size=8).map("\n".join))
    def test_any_text_is_a_configuration_or_refused(self, text: str) -> None:
        told = attempt(config.parse, text)
        if isinstance(told, TattleError):
            assert told.status == os.EX_CONFIG
            assert str(told).startswith("/etc/tattle.conf, line ")
            return
        for one in (told, *told.services.values()):
            assert one.source
            assert 0 < len(one.detail_type) <= LONGEST_DETAIL_TYPE
            assert one.fields
