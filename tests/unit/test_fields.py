"""The event's `detail`: JSON of the fields asked for, in that order; what is not known is null."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standins.imds import identity_document
from tattle.event import accounts
from tattle.event.fields import (
    DEFAULT,
    FROM_INSTANCE,
    FROM_SESSION,
    FROM_SSHD,
    connection,
    detail,
    event_id,
    session_id,
)
from tattle.event.identity import IdentityDocument
from tattle.login.pam import Session
from unit.sessions import session, sessions, thorough

ALL_FIELDS = (*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:Name", "tag:é")
DOCUMENT = cast(IdentityDocument, identity_document())


def said(session: Session, fields: tuple[str, ...], believed: bool = True) -> dict[str, Any]:
    text = detail(session, fields, DOCUMENT, tags_of({"Name": "bastion"}), lambda _: believed)
    said: dict[str, Any] = json.loads(text)
    return said


def tags_of(tags: dict[str, str]) -> Callable[[str], str | None]:
    return lambda name: tags.get(name)  # noqa: PLW0108 (mypy wants one signature)


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


@pytest.mark.parametrize(
    ("lines", "method", "has_key"),
    [
        (f"publickey {KEY}", "publickey", True),
        (f"hostbased {KEY}", "hostbased", True),
        (f"password\npublickey {KEY}", "password,publickey", True),
        ("keyboard-interactive/pam", "keyboard-interactive/pam", False),
        (f"gssapi-with-mic {KEY}", "gssapi-with-mic", False),
    ],
)
def test_the_key_is_that_of_a_method_that_has_one(lines: str, method: str, has_key: bool) -> None:
    ours = session("open_session", {"TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": lines})
    told = said(ours, ("auth_method", "key_fingerprint"))
    assert told["auth_method"] == method
    assert bool(told["key_fingerprint"]) == has_key


class TestDetail:
    def test_the_default_is_three_fields_to_the_byte(self) -> None:
        ours = session(PAM_RHOST="1.2.3.4", PAM_TTY="ssh", PAM_SERVICE="sshd")
        text = detail(ours, DEFAULT, DOCUMENT, tags_of({}), lambda _: True)
        assert text == '{"username": "ubuntu", "remote_host": "1.2.3.4", "session": "opened"}'

    def test_it_says_what_the_session_and_the_instance_have_in_the_order_asked_for(self) -> None:
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
        expected = {
            "tag:Name": "bastion",
            "image_id": "ami-0abcdef1234567890",
            "instance_type": "t4g.micro",
            "availability_zone": "us-east-1b",
            "private_ip": "10.0.0.5",
            "connection": {
                "remote_host": "2001:db8::1",
                "remote_port": 50000,
                "local_host": "10.0.0.5",
                "local_port": 22,
            },
            "auth_method": "publickey,password",
            "duration": 60,
            "time": "2026-01-02T03:04:05.678Z",
            "remote_user": "me",
            "tty": "ssh",
            "service": "sshd",
        }
        told = said(ours, (*expected, "tag:é"))
        assert list(told.items()) == list(expected.items())

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


def test_an_event_keeps_its_id_and_another_has_another() -> None:
    assert event_id(session(context={"A": "1"})) == event_id(session(context={"A": "1"}))
    assert event_id(session(context={"A": "1"})) != event_id(session(context={"A": "2"}))
    assert event_id(session()) != event_id(session(PAM_RHOST="h"))


@pytest.mark.parametrize(
    ("context", "reported"),
    [({"TATTLE_HOST": "then"}, "then"), ({}, "n\\xf4w")],
    ids=["that of the moment", "of a record of 1.1, this machine's"],
)
def test_the_host_name_is_text(
    context: dict[str, str], reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = os.uname_result(("Linux", "n\udcf4w", "6", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: now)
    assert said(session(context=context), ("hostname",)) == {"hostname": reported}


def test_a_sessions_opening_and_closing_share_its_id() -> None:
    context = {"TATTLE_BOOT": "b", "TATTLE_PARENT": "7", "TATTLE_PARENT_START": "9"}
    opened, closed = (
        session(kind, {**context, "TATTLE_TIME": kind})
        for kind in ("open_session", "close_session")
    )
    assert session_id(opened) == session_id(closed) is not None
    for name in context:
        assert session_id(session(context={**context, name: "other"})) != session_id(opened)
        assert session_id(session(context={**context, name: ""})) is None


def test_who_reported_it_is_the_hook_unless_a_witness_says_so() -> None:
    for told in ("logind", "process"):
        assert said(session(context={"TATTLE_REPORTED_BY": told}), ("reported_by",)) == {
            "reported_by": told
        }
    assert said(session(), ("reported_by",)) == {"reported_by": "pam"}


def test_only_a_line_feed_ends_what_sshd_says_of_a_method() -> None:
    """A client chooses its user name for hostbased. sshd refuses only a line feed in it."""
    texts = [f"client user {separator}none" for separator in "\v\f\r\x1c\x85\u2028\u2029"]
    info = "".join(f"hostbased ssh-rsa AAAA {text}\n" for text in texts)
    ours = session(context={"TATTLE_UNVERIFIED_SSH_AUTH_INFO_0": info})
    assert said(ours, ("auth_method",)) == {"auth_method": ",".join(["hostbased"] * len(texts))}


class TestAccounts:
    @pytest.fixture(autouse=True)
    def _id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accounts = accounts.Accounts()
        self.runs = tmp_path / "runs"
        self.program = tmp_path / "id"
        monkeypatch.setattr(accounts, "ID_SECONDS", 0.5)
        monkeypatch.setattr(accounts, "ID", str(self.program))
        self.script("exec /usr/bin/id")

    def script(self, command: str) -> None:
        self.program.write_text(f'#!/bin/sh\necho "$*" >>{self.runs}\n{command} "$@"\n')
        self.program.chmod(0o755)

    def test_a_user_has_a_number_and_groups(self) -> None:
        for _ in range(2):  # once asked for
            assert (self.accounts.uid("root"), self.accounts.groups("root")) == (0, ["root"])
        assert self.runs.read_text() == "-u -- root\n-Gnz -- root\n"

    @pytest.mark.parametrize("user", ["no such user", "-u", "--help", "", "\udcff", "a\0b"])
    def test_who_is_none_has_neither(self, user: str) -> None:
        assert (self.accounts.uid(user), self.accounts.groups(user)) == (None, None)

    def test_a_directory_that_is_silent_is_not_asked_again_for_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.script("exec sleep 60 #")
        for _ in range(3):
            assert (self.accounts.uid("root"), self.accounts.groups("root")) == (None, None)
        assert len(self.runs.read_text().splitlines()) == 1
        self.script("exec /usr/bin/id")
        self.accounts._ask_from = 0.0
        assert self.accounts.uid("root") == 0


@pytest.mark.parametrize(
    "told",
    [
        "",
        "1.2.3.4 5 6",
        "h p l q",
        "1 2 3 4 5",
        "h 1e3 l 2",
        "UNKNOWN 65535 UNKNOWN 65535",
        "h " + "9" * 5000 + " l 2",
    ],
)
def test_a_connection_that_is_none_is_null(told: str) -> None:
    assert connection(session(context={"TATTLE_UNVERIFIED_SSH_CONNECTION": told})) is None
