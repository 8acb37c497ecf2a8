"""What pam_exec wrote at the end of an environment is found there, or the environment is refused;
of a record comes a session, or a refusal that a person can read. Never another exception."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tattle.errors import TattleError
from tattle.login.pam import ITEMS, is_whole, parse, trusted_block
from unit.sessions import attempt, block, blocks, thorough

BLOCK = block(
    PAM_SERVICE="sshd", PAM_USER="u", PAM_TTY="ssh", PAM_RHOST="h", PAM_TYPE="open_session"
)


class TestTheTrustedBlock:
    @pytest.mark.parametrize(
        ("before", "trusted"),
        [
            (b"", BLOCK),
            (block(LANG="C", PAM_SERVICE="mine", PAM_USER="root", PAM_TYPE="mine"), BLOCK),
            (b"A=1\0", block(PAM_SERVICE="s", PAM_USER="PAM_SERVICE=x", PAM_TYPE="open_session")),
        ],
    )
    def test_it_begins_at_the_last_variable_of_that_name(
        self, before: bytes, trusted: bytes
    ) -> None:
        assert trusted_block(before + trusted) == trusted

    @pytest.mark.parametrize(
        "odd",
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
    def test_what_pam_exec_does_not_write_is_refused(self, odd: bytes) -> None:
        with pytest.raises(TattleError, match="refused") as refusal:
            trusted_block(block(LANG="C") + odd)
        assert refusal.value.status == os.EX_USAGE

    @thorough
    @given(blocks, st.binary(max_size=20))
    def test_nothing_before_it_changes_it(self, before: bytes, rubbish: bytes) -> None:
        assert trusted_block(before + BLOCK) == BLOCK
        assert trusted_block(rubbish.replace(b"\0", b"") + b"\0" + BLOCK) == BLOCK

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


class TestARecord:
    def test_what_pam_said_and_the_context_are_kept_apart(self) -> None:
        parsed = parse(block(PAM_USER="u=v", TATTLE_TIME="5", PAM_TYPE="close_session"))
        assert parsed.state == "closed"
        assert parsed.pam == {"PAM_USER": "u=v", "PAM_TYPE": "close_session"}
        assert parsed.context == {"TATTLE_TIME": "5"}

    def test_bytes_that_are_not_utf_8_stay_visible(self) -> None:
        parsed = parse(block(PAM_USER=b"a\xffb\xc3\xa9", PAM_TYPE="open_session"))
        assert parsed.pam["PAM_USER"] == "a\\xffbé"

    @pytest.mark.parametrize("kind", ["", "auth", "account", "OPEN_SESSION", "open_session "])
    def test_only_an_opening_and_a_closing_are_events(self, kind: str) -> None:
        with pytest.raises(TattleError, match="open_session or close_session") as refusal:
            parse(block(PAM_USER="u", PAM_TYPE=kind))
        assert refusal.value.status == os.EX_USAGE

    def test_what_a_power_cut_leaves_of_it_is_never_taken_for_a_whole_one(self) -> None:
        """A part is missing or, as file systems have it, NULs: up to the end, or in between."""
        record = BLOCK + block(TATTLE_TIME="1", TATTLE_PARENT="2", TATTLE_BOOT="0b4f")
        assert is_whole(record)
        assert is_whole(BLOCK + block(TATTLE_BOOT="0b4f", TATTLE_UNVERIFIED_X="y"))  # tattle 1.1's
        for end in range(len(record)):
            assert not is_whole(record[:end])
            for begin in range(end - 1):
                assert not is_whole(record[:begin] + bytes(end - begin) + record[end:])
        for begin in range(len(record) - 1):
            assert not is_whole(record[:begin] + bytes(len(record) - begin))

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
